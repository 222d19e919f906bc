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


import random
import unittest

from xenimport.remediation.windows import inf

#: In the manner of XenServer's; syntax as in Microsoft's rules for INFs.
_TEXT = '\r\n'.join(
    (
        '; Class=Comment',
        'Class=Outside',
        '[version] ; the case of names does not count',
        'Signature="$Windows NT$" ',
        'CLASS = SCSIAdapter ; Class=Comment',
        'Provider=%Citrix% ',
        'Odd="a;b,c" , second',
        'Percent=100%%',
        'Unknown=%nobody%',
        'Long=one\\',
        'two',
        'DriverVer=02/29/2016,8.1.0.130',
        '[Inst.NTamd64.Services]',
        'AddService=xenvbd,0x02,XenVbd_Service,',
        'AddService = %Second%',
        'AddService=XENVBD',
        '[SourceDisksFiles]',
        'xenvbd.sys=0,,',
        '[SourceDisksFiles.amd64]',
        'xencrsh.sys = 0',
        '[Inst]',
        'CopyFiles=Copied, @direct.sys',
        '[Copied]',
        'xenvbd_coinst_8_1_0_130.dll,xenvbd_coinst.dll',
        'xenvbd.sys,,,2',
        '[Version]',
        'CatalogFile=xenvbd.cat',
        '[Strings]',
        'Citrix= "Citrix ""Systems"", Inc." ',
        'second = xendisk',
    )
)


class InfTest(unittest.TestCase):
    def setUp(self) -> None:
        self.inf = inf.parse(_TEXT.encode('ascii'))

    def test_values(self) -> None:
        for key, value in (
            ('Class', 'SCSIAdapter'),
            ('provider', 'Citrix "Systems", Inc.'),
            ('Signature', '$Windows NT$'),
            ('Odd', 'a;b,c'),
            ('Percent', '100%'),
            ('Unknown', '%nobody%'),
            ('Long', 'onetwo'),
            ('CatalogFile', 'xenvbd.cat'),
            ('Absent', ''),
        ):
            self.assertEqual(value, self.inf.value('Version', key), key)
        self.assertEqual('', self.inf.value('Nowhere', 'Class'))

    def test_services(self) -> None:
        self.assertEqual(('xenvbd', 'xendisk'), self.inf.services())

    def test_files(self) -> None:
        self.assertEqual(
            {
                'xenvbd.sys',
                'xencrsh.sys',
                'direct.sys',
                'xenvbd_coinst_8_1_0_130.dll',
            },
            set(self.inf.files()),
        )

    def test_encodings(self) -> None:
        text = '[Version]\r\nProvider="J\xfcrgen"\r\nClass=Net'
        for code in ('utf-16', 'utf-8', 'utf-8-sig', 'cp1252', 'utf-16-le'):
            found = inf.parse(text.encode(code))
            self.assertEqual('J\xfcrgen', found.value('Version', 'Provider'))
            self.assertEqual('Net', found.value('Version', 'Class'))
        data = b'\xfe\xff' + text.encode('utf-16-be')
        self.assertEqual('Net', inf.parse(data).value('Version', 'Class'))

    def test_line_ends(self) -> None:
        for end in ('\n', '\r', '\r\n'):
            data = _TEXT.replace('\r\n', end).encode()
            self.assertEqual('SCSIAdapter', inf.parse(data).value(
                'Version', 'Class'
            ))  # fmt: skip

    def test_english_strings_win(self) -> None:
        found = inf.parse(
            b'[Version]\nProvider=%v%\nClass=%w%\n[Strings]\nv=Deutsch\n'
            b'w=only\n[Strings.0409]\nv=English\n'
        )
        self.assertEqual('English', found.value('Version', 'Provider'))
        self.assertEqual('only', found.value('Version', 'Class'))


class HostileInfTest(unittest.TestCase):
    def test_no_inf(self) -> None:
        for data in (
            b'',
            b'\xff',
            b'\xff\xfe',
            b'\xff\xfe[',
            b'[',
            b'[]',
            b'=',
            b'[v',
            b'[Version]\n=,=,"',
            b'\0' * 1000,
            b'MZ' + bytes(range(256)) * 10,
        ):
            found = inf.parse(data)
            self.assertEqual('', found.value('Version', 'Class'))
            self.assertEqual((), found.services())
            self.assertEqual((), found.files())

    def test_random_bytes(self) -> None:
        source = random.Random(4)
        for _ in range(200):
            data = bytes(source.choices(b'[]=,;%"\\\r\n\0 aV', k=300))
            found = inf.parse(b'[Version]\nClass=x\n' + data)
            found.value('Version', 'Provider')
            found.services()
            found.files()

    def test_strings_do_not_multiply(self) -> None:
        bomb = '%a%' * 5000
        text = f'[Version]\nProvider={bomb}\n[Strings]\na="{"b" * 9000}"\n'
        found = inf.parse(text.encode())
        self.assertLessEqual(len(found.value('Version', 'Provider')), 1024)

    def test_strings_in_strings_are_not_put_in(self) -> None:
        found = inf.parse(b'[Version]\nClass=%a%\n[Strings]\na=%a%%a%\n')
        self.assertEqual('%a%%a%', found.value('Version', 'Class'))

    def test_many_sections_and_lines(self) -> None:
        sections = b''.join(b'[%d]\n' % number for number in range(60_000))
        self.assertLessEqual(len(inf.parse(sections).sections), 20_000)
        found = inf.parse(b'[Version]\n' + b'a\n' * 300_000)
        self.assertLessEqual(len(found.sections['VERSION']), 200_000)

    def test_one_endless_line(self) -> None:
        found = inf.parse(b'[Version]\nClass=' + b'x' * 1_000_000)
        self.assertLessEqual(len(found.value('Version', 'Class')), 1024)
        found = inf.parse(b'[Version]\nClass=x' + b'y\\\n' * 100_000)
        self.assertLessEqual(len(found.value('Version', 'Class')), 1024)

    def test_what_moves_a_cursor_is_taken_out(self) -> None:
        found = inf.parse(b'[Version]\nProvider="\x1b[2Jx\x07"\n')
        self.assertEqual('[2Jx', found.value('Version', 'Provider'))


if __name__ == '__main__':
    unittest.main()
