//! Packs tell by themselves what is in them.

use super::super::cause::Cause;
use super::super::id::BlobKind;
use super::super::keys::Keys;
use super::super::pack::{Encoding, Filling, scan};
use super::*;

fn filled() -> (Vec<u8>, usize) {
    let mut filling = Filling::new([7; 16], Keys::default().new_pack().unwrap());
    for seed in 0..5 {
        let kind = if seed == 3 { BlobKind::Page } else { BlobKind::Block };
        let bytes = noise(seed, 100 + seed as usize);
        filling
            .add(
                kind,
                Keys::default().id(kind, &bytes),
                Encoding::Plain,
                bytes.len() as u32,
                &bytes,
            )
            .unwrap();
    }
    let (pack, bytes, blobs) = filling.finish();
    assert_eq!(scan(&bytes, [7; 16], &Keys::default()).unwrap(), (pack.salt, blobs.clone()));
    (bytes, blobs.len())
}

#[test]
fn what_was_put_in_is_found() {
    let (bytes, count) = filled();
    assert_eq!(count, 5);
    assert_eq!(scan(&bytes, [8; 16], &Keys::default()), Err(Cause::Magic));
}

#[test]
fn each_flipped_bit_and_each_cut_is_found() {
    let (bytes, _) = filled();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(scan(&bad, [7; 16], &Keys::default()).is_err(), "bit flipped in byte {at}");
    }
    let ends: Vec<usize> = (0..bytes.len())
        .filter(|&end| scan(&bytes[..end], [7; 16], &Keys::default()).is_ok())
        .collect();
    // Between two blobs a pack looks whole: its name tells that it is not.
    assert_eq!(
        ends,
        [48, 48 + 156, 48 + 156 + 157, 48 + 156 + 157 + 158, 48 + 156 + 157 + 158 + 159]
    );
}
