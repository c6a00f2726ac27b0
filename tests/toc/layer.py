import tarfile, io, random, sys
random.seed(4)
t = tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT)
def add(name, kind=tarfile.REGTYPE, data=b"", mode=0o644, mtime=1700000000, uid=0, gid=0, link="", xattrs={}, dev=(0,0)):
    i = tarfile.TarInfo(name); i.type = kind; i.mode = mode; i.mtime = mtime; i.uid = uid; i.gid = gid; i.linkname = link; i.size = len(data)
    i.devmajor, i.devminor = dev
    i.pax_headers = {"SCHILY.xattr." + k: v for k, v in xattrs.items()}
    t.addfile(i, io.BytesIO(data))
D, L, S, C, B, F = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE
add("./", D, mode=0o755)
add("bin/", D, mode=0o755)
add("bin/sh", data=b"#!" + bytes(random.choices(b"abcdefgh", k=3000)), mode=0o4755)
add("bin/bash", L, link="bin/sh")
add("bin/link", S, link="sh", mode=0o777)
add("empty", mode=0o600, uid=1000, gid=1000)
add("etc/", D, mode=0o1777)
add("etc/.wh.gone")
add("opt/", D)
add("opt/.wh..wh..opq")
add("opt/many", data=b"".join(b"%06d\n" % n for n in range(3000)), xattrs={"user.note": "value", "security.capability": "\x01\x00\x00\x02"})
add("dev/null", C, dev=(1, 3), mode=0o666)
add("dev/sda", B, dev=(8, 0), mode=0o660, gid=6)
add("run/pipe", F)
add("zeros", data=bytes(9000) + b"end")
add("n\u00e4me", data=b"umlaut\n", uid=3000000)
add("old", data=b"old", mtime=-1.0)
t.close()
