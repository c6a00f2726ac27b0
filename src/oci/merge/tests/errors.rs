//! What no one could unpack, with its cause.

use super::super::cause::Cause;
use super::*;
use crate::error::Kind;

#[track_caller]
fn fails(layers: &[&[&str]], cause: Cause, text: &str) {
    let error = try_merge(layers).unwrap_err();
    assert_eq!((error.kind(), error.cause::<Cause>()), (Kind::Corrupt, Some(&cause)), "{error}");
    assert_eq!(error.to_string(), format!("layer sha256:abc: {text} (corrupt image)"));
}

/// containerd refuses it too. umoci removes the folder that it is in, and then fails.
#[test]
fn a_whiteout_without_a_name() {
    for path in [".wh.", ".wh..", ".wh..."] {
        let path = format!("d/{path}");
        fails(
            &[&["d/"], &[&path]],
            Cause::Whiteout,
            &format!("/{path}: whiteout that names nothing"),
        );
    }
}

#[test]
fn a_hard_link_to_nothing() {
    let cause = Cause::NoTarget("gone".into());
    let text = "/d/b: hard link to \"gone\", which is not there";
    fails(&[&["a = 1"], &["d/b => gone"]], cause.clone(), text);
    fails(&[&["gone = 1"], &[".wh.gone"], &["d/b => gone"]], cause, text);
    let cycle = Cause::NoTarget("c".into());
    fails(&[&["b => c", "c => b"]], cycle, "/b: hard link to \"c\", which is not there");
    let own = Cause::NoTarget("a".into());
    fails(&[&["a => a"]], own, "/a: hard link to \"a\", which is not there");
    let into_cycle = try_merge(&[&["a => b", "b => c", "c => d", "d => c"]]).unwrap_err();
    assert_eq!(into_cycle.cause(), Some(&Cause::NoTarget("b".into())));
}

#[test]
fn a_hard_link_to_a_folder() {
    let cause = |target: &str| Cause::FolderTarget(target.into());
    fails(&[&["d/"], &["b => d"]], cause("d"), "/b: hard link to the folder \"d\"");
    fails(&[&["b => d", "d/"]], cause("d"), "/b: hard link to the folder \"d\"");
    fails(&[&["b => ."]], cause(""), "/b: hard link to the folder \"\"");
}

/// As umoci and containerd, which cannot make the folder either.
#[test]
fn a_file_where_a_folder_is_needed() {
    let text = "/a/x: \"a\" on the way is no folder";
    fails(&[&["a = 1"], &["a/x = 2"]], Cause::Parent("a".into()), text);
    let text = "/l/x: \"a\" on the way is no folder";
    fails(&[&["a = 1", "l -> a"], &["l/x = 2"]], Cause::Parent("a".into()), text);
}

#[test]
fn a_loop_of_symbolic_links() {
    let cause = Cause::Loop(255);
    let text = "/a/x: more than 255 symbolic links on the way";
    fails(&[&["a -> b", "b -> a"], &["a/x = 2"]], cause.clone(), text);
    fails(&[&["a -> a/a"], &["a/x = 2"]], cause, text);
    // For a whiteout it is as if nothing were there, and for a link's target.
    assert_eq!(shown(&merge(&[&["a -> a"], &["a/.wh.x"]])), ["a -> a"]);
    assert!(try_merge(&[&["a -> a"], &["b => a/x"]]).is_err());
}

#[test]
fn a_root_that_is_no_folder() {
    fails(&[&["/ -> x"]], Cause::Root, "/: the root is no folder here");
}

#[test]
fn a_tar_that_is_not_the_one_of_the_index() {
    let mut part = part(&["a = 123"]);
    part.data = Arc::new(MemorySource::new(vec![0; 5]));
    let error = Merged::new(vec![part]).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::Data(5, 3)));
}

#[test]
fn folders_without_number_are_not_made_up() {
    let mut made = Made::new(&[]);
    for number in 0..40 {
        made.entries
            .push(entry(format!("{number}/{}f", "a/".repeat(16_000)).as_bytes(), EntryKind::Fifo));
    }
    let error = Merged::new(vec![made.part()]).unwrap_err();
    let most = 40 * 4 + (1 << 17);
    assert_eq!(error.cause(), Some(&Cause::Budget(most, "files and folders made up on their way")));
}

#[test]
fn opaques_without_number_end_in_their_budget() {
    let mut lower = Made::new(&["d/"]);
    let count = 10_000;
    for number in 0..count {
        lower.entries.push(entry(format!("d/{number}").as_bytes(), EntryKind::Fifo));
    }
    let mut upper = Made::new(&[]);
    for _ in 0..count {
        upper.entries.push(entry(b"d/.wh..wh..opq", EntryKind::File));
    }
    let error = Merged::new(vec![lower.part(), upper.part()]).unwrap_err();
    let most = (2 * count + 1) * 64 + (1 << 22);
    assert_eq!(error.cause(), Some(&Cause::Budget(most, "steps to merge the layers")));
}
