#[path = "../../tests/support/contract.rs"]
pub(crate) mod contract;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::composed::Composed;
use super::folder::Folder;
use super::path::{Follow, locate, resolve};
use super::*;
use crate::block::MemorySource;
use crate::error::{Error, Kind};

const WHEN: Time = Time { seconds: 1_700_000_000, nanos: 123 };

/// A tree of these files: `a/b` is a file holding its own path, `a/b = text` one holding the text,
/// `a/` a folder, `a -> b` a link.
pub(crate) fn tree(files: &[&str]) -> Folder {
    let mut tree = Folder::new(1000, 100, WHEN);
    for file in files {
        let (path, target) = match file.split_once(" -> ") {
            Some((path, target)) => (path, Some(target)),
            None => (*file, None),
        };
        let (path, text) = path.split_once(" = ").unwrap_or((path, path));
        let mut dir = tree.root();
        let mut names = path.split('/').map(str::as_bytes).peekable();
        while let Some(name) = names.next().filter(|name| !name.is_empty()) {
            dir = match tree.lookup(dir, name).unwrap() {
                Some(node) => node,
                None if names.peek().is_some() => tree.add_folder(dir, name, WHEN).unwrap(),
                None => match target {
                    Some(target) => tree.add_symlink(dir, name, target.as_bytes(), WHEN).unwrap(),
                    None => {
                        let source = Arc::new(MemorySource::new(text.as_bytes().to_vec()));
                        tree.add_file(dir, name, source, u64::MAX, WHEN).unwrap()
                    }
                },
            };
        }
    }
    tree
}

pub(crate) fn at(tree: &dyn FileTree, path: &str) -> NodeId {
    resolve(tree, path.as_bytes(), Follow::ExceptLast).unwrap()
}

pub(crate) fn names(tree: &dyn FileTree, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    tree.read_dir(at(tree, path), 0, &mut |entry| {
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        true
    })
    .unwrap();
    names
}

pub(crate) fn contents(tree: &dyn FileTree, path: &str) -> String {
    let node = resolve(tree, path.as_bytes(), Follow::Always).unwrap();
    let mut bytes = vec![0; 1000];
    let len = tree.read_at(node, 0, &mut bytes).unwrap();
    String::from_utf8(bytes[..len].to_vec()).unwrap()
}

#[test]
fn a_folder_keeps_the_contract() {
    contract::check(&tree(&[]));
    let files: Vec<String> = (0..300).map(|number| format!("many/{number}")).collect();
    let mut all: Vec<&str> = files.iter().map(String::as_str).collect();
    all.extend(["a/b/c", "a/d", "e", "f -> a/d", "empty/", "dangling -> nowhere"]);
    contract::check(&tree(&all));
}

#[test]
fn a_folder_shows_disks_with_their_holes() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 5000], 3 << 20).unwrap();
    let source = crate::block::FileSource::new(file, "disk".into()).unwrap();
    let source: Arc<dyn crate::block::BlockSource> = Arc::new(source);
    let window = crate::block::Window::new(Arc::clone(&source), 2 << 20, 4 << 20).unwrap();

    let mut tree = Folder::new(7, 8, WHEN);
    let root = tree.root();
    let disk = tree.add_file(root, b"disk.img", source, 8192, WHEN).unwrap();
    let part = tree.add_file(root, b"p1.img", Arc::new(window), 8192, WHEN).unwrap();
    contract::check(&tree);
    let attr = tree.attr(disk).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o444, 7, 8));
    assert_eq!((attr.size, attr.blocks, attr.modified), (10 << 20, 16, WHEN));
    assert_eq!(tree.extent_at(part, 0).unwrap(), Extent { len: 1 << 20, hole: true });
    assert!(tree.whole_file(disk).is_some() && tree.whole_file(part).is_none());
    assert_eq!(tree.statfs().unwrap().blocks, (14 << 20) / 4096);
}

#[test]
fn a_folder_takes_each_name_once() {
    let mut tree = tree(&["a/b"]);
    let root = tree.root();
    let file = at(&tree, "a/b");
    let mut add = |parent, name: &[u8]| tree.add_folder(parent, name, WHEN).unwrap_err().kind();
    assert_eq!(add(root, b"a"), Kind::Exists);
    assert_eq!(add(file, b"x"), Kind::NotADirectory);
    assert_eq!(add(NodeId(99), b"x"), Kind::NotFound);
    for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert_eq!(add(root, name), Kind::Usage);
    }
}

#[test]
fn paths_follow_links_inside_the_tree() {
    let tree = tree(&[
        "etc/passwd",
        "usr/bin/sh",
        "bin -> usr/bin",
        "abs -> /usr/../etc",
        "out -> ../../../../etc/passwd",
        "usr/up -> ../etc/./passwd",
        "chain -> usr/up",
        "file -> etc/passwd/",
    ]);
    let found = |path: &str| {
        let found = locate(&tree, path.as_bytes(), Follow::Always).unwrap();
        String::from_utf8(found.path).unwrap()
    };
    for root in ["", "/", "//", ".", "..", "/../..", "usr/..", "usr/../"] {
        assert_eq!(found(root), "/");
        assert_eq!(at(&tree, root), tree.root());
    }
    for passwd in ["etc/passwd", "//etc//./passwd", "abs/passwd", "out", "usr/up", "chain"] {
        assert_eq!(found(passwd), "/etc/passwd");
        assert_eq!(contents(&tree, passwd), "etc/passwd");
    }
    assert_eq!(found("bin/sh"), "/usr/bin/sh");
    assert_eq!(found("bin/.."), "/usr");
    assert_eq!(found("etc/"), "/etc");

    // Without following the last: the link, but not if a slash says that a folder is meant.
    let kind = |path: &str| tree.attr(at(&tree, path)).unwrap().kind;
    assert_eq!(kind("bin"), FileKind::Symlink);
    assert_eq!(kind("bin/"), FileKind::Directory);
    assert_eq!(kind("bin/."), FileKind::Directory);
}

#[test]
fn paths_that_lead_nowhere_say_where() {
    let tree = tree(&[
        "etc/passwd",
        "dangling -> etc/shadow",
        "a -> b",
        "b -> a",
        "file -> etc/passwd/",
        "self -> self/x",
    ]);
    let refused = |path: &str| {
        let error = resolve(&tree, path.as_bytes(), Follow::Always).unwrap_err();
        (error.kind(), error.to_string())
    };
    let (missing, no_folder) = (Kind::NotFound, Kind::NotADirectory);
    assert_eq!(refused("x"), (missing, "/x: no such file or folder".into()));
    assert_eq!(refused("etc/y/z"), (missing, "/etc/y: no such file or folder".into()));
    assert_eq!(refused("dangling"), (missing, "/etc/shadow: no such file or folder".into()));
    for path in ["etc/passwd/x", "etc/passwd/", "etc/passwd/.", "etc/passwd/..", "file"] {
        assert_eq!(refused(path), (no_folder, "/etc/passwd: not a folder".into()), "{path}");
    }
    assert_eq!(refused("a").1, "/a: more than 40 symbolic links on the way");
    assert_eq!(refused("self").1, "/self: more than 40 symbolic links on the way");
}

#[test]
fn exactly_forty_links_are_followed() {
    let links: Vec<String> = (0..41).map(|n| format!("l{n} -> l{}", n + 1)).collect();
    let mut files: Vec<&str> = links.iter().map(String::as_str).collect();
    files.push("l41");
    let tree = tree(&files);
    assert_eq!(contents(&tree, "l1"), "l41");
    assert!(resolve(&tree, b"l0", Follow::Always).is_err());
}

#[test]
fn nothing_grafted_is_the_tree_itself() {
    let base: Arc<dyn FileTree> = Arc::new(tree(&["a"]));
    assert!(Arc::ptr_eq(&base, &Composed::new(Arc::clone(&base)).into_tree()));
}

#[test]
fn grafted_trees_are_one_tree() {
    let base = tree(&["etc/fstab", "boot/hidden", "home/", "link -> boot/efi/x"]);
    let numbers = [at(&base, "etc"), at(&base, "etc/fstab")];
    let boot = Arc::new(tree(&["vmlinuz", "efi/"]));
    let mut composed = Composed::new(Arc::new(base));
    composed.graft(at(&composed, "boot"), boot).unwrap();
    composed.graft(at(&composed, "boot/efi"), Arc::new(tree(&["x"]))).unwrap();
    composed.graft(at(&composed, "home"), Arc::new(tree(&["me/file"]))).unwrap();
    let composed = composed.into_tree();

    assert_eq!([at(&*composed, "etc"), at(&*composed, "etc/fstab")], numbers);
    assert_eq!(names(&*composed, "boot"), ["vmlinuz", "efi"]);
    assert_eq!(contents(&*composed, "boot/efi/x"), "x");
    assert_eq!(contents(&*composed, "home/me/file"), "me/file");
    assert_eq!(contents(&*composed, "link"), "x");
    assert_eq!(contents(&*composed, "boot/../etc/fstab"), "etc/fstab");
    assert_eq!(at(&*composed, "boot").0 >> 48, 1);
    contract::check(&*composed);
}

#[test]
fn a_second_graft_covers_the_first() {
    let mut composed = Composed::new(Arc::new(tree(&["a/"])));
    let a = at(&composed, "a");
    composed.graft(a, Arc::new(tree(&["first"]))).unwrap();
    composed.graft(at(&composed, "a"), Arc::new(tree(&["second"]))).unwrap();
    assert_eq!(names(&composed, "a"), ["second"]);
    composed.graft(composed.root(), Arc::new(tree(&["all"]))).unwrap();
    assert_eq!(names(&composed, "/"), ["all"]);
    contract::check(&composed);
}

#[test]
fn only_a_folder_takes_a_graft() {
    let mut composed = Composed::new(Arc::new(tree(&["file", "a/"])));
    let (file, a) = (at(&composed, "file"), at(&composed, "a"));
    let kind = composed.graft(file, Arc::new(tree(&[]))).unwrap_err().kind();
    assert_eq!(kind, Kind::NotADirectory);
    assert!(composed.graft(NodeId(77), Arc::new(tree(&[]))).is_err());
    composed.graft_lazily(a, || Ok(Composed::new(Arc::new(tree(&[]))))).unwrap();
    let again = composed.graft_lazily(a, || Ok(Composed::new(Arc::new(tree(&[])))));
    assert_eq!(again.unwrap_err().kind(), Kind::Exists);
}

#[test]
fn lazy_trees_open_when_entered() {
    static OPENED: AtomicU32 = AtomicU32::new(0);
    let mut composed = Composed::new(Arc::new(tree(&["one/", "two/"])));
    let (one, two) = (at(&composed, "one"), at(&composed, "two"));
    composed
        .graft_lazily(one, || {
            if OPENED.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(Error::new(Kind::Io, "not yet"));
            }
            // What is opened may itself be composed.
            let mut inner = Composed::new(Arc::new(tree(&["etc/fstab", "home/"])));
            inner.graft(at(&inner, "home"), Arc::new(tree(&["me"])))?;
            let etc = at(&inner, "etc");
            inner.graft_lazily(etc, || Ok(Composed::new(Arc::new(tree(&["deep"])))))?;
            Ok(inner)
        })
        .unwrap();
    composed.graft_lazily(two, || Ok(Composed::new(Arc::new(tree(&["x"]))))).unwrap();
    let before = composed.attr(one).unwrap();
    assert_eq!(names(&composed, "/"), ["one", "two"]);
    assert_eq!(OPENED.load(Ordering::SeqCst), 0);

    assert_eq!(composed.lookup(one, b"home").unwrap_err().to_string(), "not yet");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(names(&composed, "one"), ["etc", "home"]));
        }
    });
    assert_eq!(OPENED.load(Ordering::SeqCst), 2, "once it is open, it stays open");
    assert_eq!(composed.attr(one).unwrap(), before);
    assert_eq!(contents(&composed, "one/home/me"), "me");
    assert_eq!(names(&composed, "two"), ["x"]);
    assert_eq!(names(&composed, "one/etc"), ["deep"]);
    assert_eq!(contents(&composed, "one/../two/x"), "x");
    contract::check(&composed);
}

#[test]
fn sixty_five_thousand_folders_wait_to_be_opened() {
    let mut folder = Folder::new(0, 0, WHEN);
    let root = folder.root();
    let nodes: Vec<NodeId> = (0..65_536)
        .map(|n| folder.add_folder(root, n.to_string().as_bytes(), WHEN).unwrap())
        .collect();
    let mut composed = Composed::new(Arc::new(folder));
    let leaf: Arc<dyn FileTree> = Arc::new(tree(&["x"]));
    for node in &nodes {
        let leaf = Arc::clone(&leaf);
        composed.graft_lazily(*node, move || Ok(Composed::new(Arc::clone(&leaf)))).unwrap();
    }
    // One number is the base's, so the last one to be entered finds no room, and says so.
    let (last, others) = nodes.split_last().unwrap();
    for node in others {
        assert!(composed.lookup(*node, b"x").unwrap().is_some());
    }
    assert_eq!(composed.lookup(*last, b"x").unwrap_err().kind(), Kind::Unsupported);
    assert!(composed.lookup(nodes[0], b"x").unwrap().is_some());
}

#[test]
fn a_node_too_large_for_a_combined_tree_is_an_error() {
    #[derive(Debug)]
    struct Large(Folder);
    impl FileTree for Large {
        fn root(&self) -> NodeId {
            self.0.root()
        }
        fn lookup(&self, _: NodeId, _: &[u8]) -> Result<Option<NodeId>> {
            Ok(Some(NodeId(1 << 48)))
        }
        fn attr(&self, node: NodeId) -> Result<Attr> {
            self.0.attr(node)
        }
        fn read_dir(
            &self,
            _: NodeId,
            _: u64,
            emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
        ) -> Result<()> {
            emit(DirEntry { name: b"x", node: NodeId(1 << 48), next: 1 });
            Ok(())
        }
        fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
            self.0.read_link(node)
        }
        fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
            self.0.read_at(node, offset, buf)
        }
        fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
            self.0.extent_at(node, offset)
        }
        fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
            self.0.origin_at(node, offset)
        }
        fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
            self.0.xattr_names(node)
        }
        fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
            self.0.xattr(node, name)
        }
        fn statfs(&self) -> Result<StatFs> {
            self.0.statfs()
        }
        fn whole_file(&self, node: NodeId) -> Option<&File> {
            self.0.whole_file(node)
        }
    }
    let composed = Composed::new(Arc::new(Large(tree(&[]))));
    let root = composed.root();
    assert_eq!(composed.lookup(root, b"x").unwrap_err().kind(), Kind::Unsupported);
    let listed = composed.read_dir(root, 0, &mut |_| true);
    assert_eq!(listed.unwrap_err().kind(), Kind::Unsupported);
}
