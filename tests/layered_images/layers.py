"""Writes the four layers of an image as 1.tar to 4.tar: layers.py SEED FOLDER

The first is like a small system, the others like applications above it. What umoci cannot make is
in them: hard links across layers, opaque folders whose own files come first.
"""
import io
import random
import sys
import tarfile

seed, folder = int(sys.argv[1]), sys.argv[2]
rng = random.Random(seed)
clock = 1_600_000_000


def noise(size):
    """Compresses about as files do."""
    words = [b"%x " % rng.getrandbits(24) for _ in range(40)]
    out = b"".join(rng.choice(words) for _ in range(size // 5 + 1))
    return out[:size]


class Layer:
    def __init__(self, number):
        self.tar = tarfile.open(f"{folder}/{number}.tar", "w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind=tarfile.REGTYPE, data=b"", link="", mode=0o644, owner=(0, 0), xattrs={}, device=(0, 0)):
        global clock
        clock += rng.randrange(1, 100_000)
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode, info.size = kind, link, mode, len(data)
        info.uid, info.gid = owner
        info.devmajor, info.devminor = device
        info.mtime = clock
        info.pax_headers = {"mtime": f"{clock}.{rng.randrange(1, 10**9):09}"}
        for key, value in xattrs.items():
            info.pax_headers["SCHILY.xattr." + key] = value
        self.tar.addfile(info, io.BytesIO(data))

    def dir(self, name, **more):
        self.add(name + "/", tarfile.DIRTYPE, **{"mode": 0o755, **more})

    def file(self, name, size=None, **more):
        self.add(name, data=noise(rng.randrange(1, 9000) if size is None else size), **more)

    def symlink(self, name, to):
        self.add(name, tarfile.SYMTYPE, link=to, mode=0o777)

    def link(self, name, to):
        self.add(name, tarfile.LNKTYPE, link=to)

    def gone(self, name):
        parent, _, last = name.rpartition("/")
        self.add(f"{parent}/.wh.{last}" if parent else f".wh.{last}")

    def opaque(self, name):
        self.add(f"{name}/.wh..wh..opq")


first = Layer(1)
first.dir(".")
for name in ["srv", "srv/bin", "srv/doc", "srv/etc", "srv/lib", "srv/lib/pkg", "srv/lib/pkg/deep", "srv/var", "srv/empty"]:
    first.dir(f"./{name}")
for n in range(120):
    first.file(f"./srv/bin/b{n:03}", mode=rng.choice([0o755, 0o755, 0o4755, 0o700, 0o2711]), owner=(0, rng.choice([0, 50])))
for n in range(60):
    first.dir(f"./srv/doc/p{n:02}")
    first.file(f"./srv/doc/p{n:02}/copyright")
    first.file(f"./srv/doc/p{n:02}/changelog", rng.choice([0, 1, 511, 512, 513, 30_000]))
for n in range(60):
    first.file(f"./srv/etc/e{n:02}", mode=rng.choice([0o644, 0o600, 0o640, 0]), owner=(rng.randrange(3) * 1000, 4_000_000_000))
for n in range(30):
    first.file(f"./srv/lib/pkg/l{n:02}.so", xattrs={"user.n": str(n), "user.long": "x" * 300} if n % 5 == 0 else {})
    first.file(f"./srv/lib/pkg/deep/d{n:02}")
first.file("./srv/large", 3_000_000)
for n in range(20):
    first.symlink(f"./srv/bin/s{n:02}", f"b{n:03}" if n % 3 else f"../../nowhere/{n}")
    first.link(f"./srv/bin/h{n:02}", f"./srv/bin/b{n + 40:03}")
first.add("./srv/var/fifo", tarfile.FIFOTYPE, mode=0o622)
first.add("./srv/var/null", tarfile.CHRTYPE, mode=0o666, device=(1, 3))
first.add("./srv/var/disk", tarfile.BLKTYPE, mode=0o660, device=(8, 1), owner=(0, 6))
first.file("./srv/var/" + "n" * 200)
first.file("./srv/var/caf\udce9", 10)  # not UTF-8
first.file("./srv/var/with space\nand line", 10)
first.add("./srv/var/sticky/", tarfile.DIRTYPE, mode=0o1777)

second = Layer(2)
second.dir("opt"), second.dir("opt/app")
for n in range(50):
    second.file(f"opt/app/a{n:02}")
second.file("opt/app/large.bin", 1_500_000)
second.link("opt/app/link", "srv/bin/b003")  # to a lower layer
second.link("opt/app/link2", "opt/app/link")
second.link("opt/app/old", "srv/etc/e07")  # which is removed here
second.link("opt/app/soft", "srv/bin/s04")  # a symbolic link
second.dir("srv"), second.dir("srv/etc", mode=0o750, owner=(7, 8)), second.dir("srv/doc")
second.gone("srv/etc/e07"), second.gone("srv/doc/p03"), second.gone("srv/doc/p04/changelog")
second.file("srv/etc/e08", owner=(5, 5))
second.gone("srv/etc/e09"), second.dir("srv/etc/e09"), second.file("srv/etc/e09/in")  # file to folder
second.dir("srv/etc/e10"), second.file("srv/etc/e10/in")  # the same without a whiteout
second.symlink("srv/doc/p05", "p06")  # folder to symbolic link
second.file("srv/bin/s05")  # symbolic link to file
second.add("srv/bin/s06", tarfile.FIFOTYPE)

third = Layer(3)
third.dir("srv"), third.dir("srv/lib"), third.dir("srv/lib/pkg", mode=0o711)
third.file("srv/lib/pkg/before")
third.opaque("srv/lib/pkg")
third.file("srv/lib/pkg/after"), third.file("srv/lib/pkg/l05.so")
third.file("srv/bin/b003")  # opt/app/link stays what it was
third.link("srv/again", "opt/app/link2")
third.add("srv/etc/e11", data=b"attributes", xattrs={"user.new": "value"})
third.link("srv/bin/h00", "srv/large")  # in place of another link
third.dir("opt"), third.dir("opt/app"), third.gone("opt/app/a01"), third.gone("opt/app/a02")
third.opaque("srv/empty"), third.gone("srv/not/there")

fourth = Layer(4)
fourth.dir("opt"), fourth.dir("opt/app")
fourth.file("opt/app/a02"), fourth.gone("opt/app/a03"), fourth.gone("opt/app/link2")
fourth.dir("srv"), fourth.dir("srv/doc"), fourth.dir("srv/doc/p03"), fourth.file("srv/doc/p03/new")
fourth.gone("srv/lib")
fourth.file("srv/doc/p05/copyright")  # through the symbolic link
fourth.link("opt/app/large.link", "srv/large")
fourth.add("opt/app/empty")
for layer in (first, second, third, fourth):
    layer.tar.close()
