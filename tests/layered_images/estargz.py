"""Writes a tar as an eStargz layer: estargz.py TAR LAYER CHUNK

By the specification (docs/estargz.md of containerd/stargz-snapshotter), with what the tar has byte for byte;
times are told whole. Prints the digests of the table of contents and of the uncompressed layer.
"""
import base64
import hashlib
import io
import json
import sys
import tarfile
import time
import zlib

source, target, chunk_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
raw = open(source, "rb").read()
out, plain = open(target, "wb"), hashlib.sha256()
pending = b""
entries = []


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(data):
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    out.write(packer.compress(data) + packer.flush())
    plain.update(data)


def text(name):
    """As Go writes what is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def add(entry, header, data):
    global pending
    pending += header
    entries.append(entry)
    if not data:
        return
    member(pending)
    for at in range(0, len(data), chunk_size):
        chunk = data[at:at + chunk_size]
        if at > 0:
            member(pending)
            entries.append({"name": entry["name"], "type": "chunk", "chunkOffset": at})
        entries[-1].update(offset=out.tell(), chunkDigest=sha256(chunk))
        if at + chunk_size < len(data):
            entries[-1]["chunkSize"] = chunk_size
        pending = chunk
    entry["digest"] = sha256(data)
    pending += bytes(-len(data) % 512)


landmark = tarfile.TarInfo(".no.prefetch.landmark")
landmark.size, landmark.mode = 1, 0
add({"name": landmark.name, "type": "reg", "size": 1, "mode": 0}, landmark.tobuf(), b"\x0f")
KINDS = {
    tarfile.REGTYPE: "reg", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block", tarfile.FIFOTYPE: "fifo",
}
with tarfile.open(source) as tar:
    for info in tar:
        seconds, _, fraction = info.pax_headers.get("mtime", str(int(info.mtime))).partition(".")
        entry = {"name": text(info.name + ("/" if info.isdir() else "")), "type": KINDS[info.type], "mode": info.mode,
                 "uid": info.uid, "gid": info.gid, "linkName": text(info.linkname), "devMajor": info.devmajor,
                 "devMinor": info.devminor,
                 "modtime": time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(int(seconds))) + (fraction or "0") + "Z"}
        xattrs = {key[13:]: base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
                  for key, value in info.pax_headers.items() if key.startswith("SCHILY.xattr.")}
        if xattrs:
            entry["xattrs"] = xattrs
        if info.isreg():
            entry["size"] = info.size
        data = raw[info.offset_data:info.offset_data + info.size] if info.isreg() else b""
        add({key: value for key, value in entry.items() if value}, raw[info.offset:info.offset_data], data)
member(pending)
at = out.tell()
toc = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
index = tarfile.TarInfo("stargz.index.json")
index.size, index.mode = len(toc), 0
member(index.tobuf() + toc + bytes(-len(toc) % 512) + bytes(1024))
extra = b"SG" + (22).to_bytes(2, "little") + b"%016xSTARGZ" % at
out.write(b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + len(extra).to_bytes(2, "little") + extra + b"\x01\0\0\xff\xff" + bytes(8))
out.close()
print(sha256(toc), "sha256:" + plain.hexdigest())
