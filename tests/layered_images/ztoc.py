"""Writes the ztoc of a gzip layer, as JSON for flatc: ztoc.py LAYER JSON SPAN [LIE]

As soci does it: zlib itself says where blocks of deflate end. With LIE, names of two files are
exchanged: "NAME OTHER".
"""
import ctypes
import gzip
import hashlib
import io
import struct
import sys
import tarfile
import time

layer, target, span = sys.argv[1], sys.argv[2], int(sys.argv[3])
lie = sys.argv[4].split(" ") if len(sys.argv) > 4 else []
stored = open(layer, "rb").read()
plain = gzip.decompress(stored)
WINDOW = 32768


class Stream(ctypes.Structure):
    _fields_ = [
        ("next_in", ctypes.c_void_p), ("avail_in", ctypes.c_uint), ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p), ("avail_out", ctypes.c_uint), ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p), ("state", ctypes.c_void_p), ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p), ("opaque", ctypes.c_void_p), ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong), ("reserved", ctypes.c_ulong),
    ]


BLOCK, END = 5, 1
zlib = ctypes.CDLL("libz.so.1")
zlib.zlibVersion.restype = ctypes.c_char_p
source = ctypes.create_string_buffer(stored, len(stored))
output = ctypes.create_string_buffer(len(plain) + 1)
z = Stream(next_in=ctypes.addressof(source), avail_in=len(stored),
           next_out=ctypes.addressof(output), avail_out=len(plain) + 1)
assert zlib.inflateInit2_(ctypes.byref(z), 47, zlib.zlibVersion(), ctypes.sizeof(z)) == 0
points, last = [], 0
while True:
    status = zlib.inflate(ctypes.byref(z), BLOCK)
    assert status in (0, END), status
    taken, made = len(stored) - z.avail_in, len(plain) + 1 - z.avail_out
    if status == END:
        if z.avail_in == 0:
            break
        assert zlib.inflateReset2(ctypes.byref(z), 47) == 0
        continue
    if z.data_type & 128 and not z.data_type & 64 and (made == 0 or made - last > span) and (made or not points):
        window = plain[max(0, made - WINDOW):made].rjust(WINDOW, b"\0")
        points.append((taken, made, z.data_type & 7, window))
        last = made
assert made == len(plain)

checkpoints = struct.pack("<iq", len(points), span)
digests = []
for (at, place, bits, window), end in zip(points, [point[0] for point in points[1:]] + [len(stored)]):
    checkpoints += struct.pack("<qqB", at, place, bits) + window
    digests.append("sha256:" + hashlib.sha256(stored[at - (bits > 0):end]).hexdigest())


def text(value):
    """Bytes, which need not be UTF-8, in the JSON of flatc."""
    data = value.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in data) + '"'


KINDS = {
    tarfile.REGTYPE: "reg", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo",
}
files = []
for info in tarfile.open(fileobj=io.BytesIO(plain)):
    seconds, _, fraction = info.pax_headers.get("mtime", str(int(info.mtime))).partition(".")
    when = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(int(seconds))) + (fraction or "0") + "Z"
    headers = ",".join(f"{{key:{text(key)},value:{text(value)}}}" for key, value in info.pax_headers.items())
    name = info.name
    if name in lie:
        name = lie[1 - lie.index(name)]
    name += "/" if info.isdir() else ""
    files.append(
        f"{{name:{text(name)},type:{text(KINDS[info.type])},place:{info.offset_data},size:{info.size},"
        f"link:{text(info.linkname)},mode:{info.mode},uid:{info.uid},gid:{info.gid},time:{text(when)},"
        f"major:{info.devmajor},minor:{info.devminor},headers:[{headers}]}}")
with open(target, "w") as out:
    out.write(f'{{version:"0.9",tool:"test",stored:{len(stored)},plain:{len(plain)},toc:{{files:[{",".join(files)}]}},'
              f'compression:{{last:{len(points) - 1},digests:[{",".join(map(text, digests))}],'
              f'checkpoints:[{",".join(map(str, checkpoints))}]}}}}')
