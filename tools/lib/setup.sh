# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

# What tools/quickstart and tools/run-tests share: the set-up of a fresh
# Debian or Ubuntu machine. Sourced by bash, with $root naming the checkout.

venv=$root/.venv
services_venv=${XENIMPORT_SERVICES_VENV:-$root/.venv-services}

# step WHAT COMMAND...: say what is done, do it, say how long it took.
step() {
    local what=$1 began=$SECONDS code=0
    shift
    printf '==> %s\n' "$what"
    # No `||` here: it would switch off `set -e` inside functions.
    "$@"
    code=$?
    printf '    %d s\n' $((SECONDS - began))
    return $code
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# The packages of bindep.txt that this distribution has, tests' included;
# those for measurements alone are left to who measures.
packages_wanted() {
    local distribution
    distribution=$(. /etc/os-release && echo "$ID")
    awk -v platform="platform:$distribution" '
        /^[a-z0-9]/ && !/[[ ]bench[] ]/ {
            if (index($0, "platform:dpkg") || index($0, platform))
                print $1
        }' "$root/bindep.txt"
}

packages_missing() {
    local package
    for package in $(packages_wanted); do
        dpkg-query --show --showformat='${db:Status-Status}\n' "$package" \
            2>/dev/null | grep --quiet --line-regexp installed ||
            echo "$package"
    done
}

install_packages() {
    local missing
    missing=$(packages_missing)
    if [ -z "$missing" ]; then
        echo '    nothing is missing'
        return
    fi
    echo "    missing:" $missing
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update --quiet=2
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 \
        --yes --no-install-recommends $missing >/dev/null
}

# up_to_date STAMP FILE...: whether the stamp names these files' content.
digest() {
    cat "$@" | sha256sum
}

up_to_date() {
    local stamp=$1
    shift
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest "$@")" ]
}

make_venv() {
    local files=("$root/requirements.txt" "$root/test-requirements.txt"
        "$root/pyproject.toml" "$root/setup.cfg")
    if up_to_date "$venv/.stamp" "${files[@]}"; then
        echo '    already there'
        return
    fi
    # The distribution's own Python: only that one sees python3-guestfs.
    [ -x "$venv/bin/python" ] ||
        /usr/bin/python3 -m venv --system-site-packages "$venv"
    # pbr takes the version from git; a copy without it has to be told.
    git -C "$root" rev-parse --quiet --verify HEAD >/dev/null 2>&1 ||
        export PBR_VERSION=${PBR_VERSION:-0.0.0}
    "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
        --requirement "$root/requirements.txt" \
        --requirement "$root/test-requirements.txt" --editable "$root"
    digest "${files[@]}" >"$venv/.stamp"
}

make_services_venv() {
    local file=$root/tools/lib/services-requirements.txt
    if up_to_date "$services_venv/.stamp" "$file"; then
        echo '    already there'
        return
    fi
    [ -x "$services_venv/bin/python" ] ||
        /usr/bin/python3 -m venv "$services_venv"
    "$services_venv/bin/pip" install --quiet --quiet --disable-pip-version-check \
        --requirement "$file"
    digest "$file" >"$services_venv/.stamp"
}

set_up() {
    step 'Packages of the distribution (bindep.txt)' install_packages
    step 'Virtual environment .venv' make_venv
    step 'Glance and Keystone in .venv-services' make_services_venv
}
