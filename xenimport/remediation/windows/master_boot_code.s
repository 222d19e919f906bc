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

# The boot code of an MBR: xenimport's own, 16 bits, any CPU from the 80386.
#
# The BIOS loads it at 0000:7C00 with its drive's number in DL. It moves
# itself out of the way, finds the active one of the four entries, reads that
# partition's first sector to where it was itself, and jumps there with the
# drive in DL and DS:SI at the entry, as boot sectors expect. It stops with a
# message where that cannot be done.
#
#   as --32 -o code.o master_boot_code.s
#   ld -m elf_i386 -Ttext 0x600 --oformat binary -o code.bin code.o
#
# gives the bytes in master_boot_code.py (a functional test compares them, and
# has SeaBIOS run them).

        .code16
        .intel_syntax noprefix
        .text
        .globl  _start

        .set    LOADED, 0x7C00          # where the BIOS puts a boot sector
        .set    MOVED, 0x600            # where this one goes
        .set    ENTRIES, MOVED + 446
        .set    TRIES, 5

_start:
        cli
        xor     ax, ax
        mov     ss, ax
        mov     sp, LOADED
        mov     ds, ax
        mov     es, ax
        sti
        cld
        mov     si, LOADED
        mov     di, MOVED
        mov     cx, 256
        rep     movsw
        ljmp    0, offset moved

moved:
        mov     si, ENTRIES
        mov     cx, 4
next:
        cmp     byte ptr [si], 0x80
        je      active
        add     si, 16
        loop    next
        mov     si, offset no_active
        jmp     stop

active:
        mov     bp, si
        mov     di, TRIES
read:
        # An address packet for INT 13h, function 42h, on the stack.
        xor     eax, eax
        push    eax                     # LBA, its upper half
        push    dword ptr [bp + 8]      # LBA, its lower half
        push    ax                      # segment
        push    LOADED                  # offset
        push    1                       # sectors
        push    16                      # bytes in the packet
        mov     si, sp
        mov     ah, 0x42
        push    dx
        int     0x13
        pop     dx
        lea     sp, [si + 16]
        jnc     loaded
        xor     ah, ah                  # reset the drive, and try again
        push    dx
        int     0x13
        pop     dx
        dec     di
        jnz     read
        mov     si, offset unreadable
        jmp     stop

loaded:
        cmp     word ptr [LOADED + 510], 0xAA55
        mov     si, offset no_code
        jne     stop
        mov     si, bp
        ljmp    0, LOADED

stop:
        lodsb
        test    al, al
        jz      halt
        mov     ah, 0x0E
        mov     bx, 7
        int     0x10
        jmp     stop
halt:
        hlt
        jmp     halt

no_active:
        .asciz  "No partition of this disk is active.\r\n"
unreadable:
        .asciz  "The active partition cannot be read.\r\n"
no_code:
        .asciz  "The active partition has no boot sector.\r\n"
