//! Whose snapshots are opened, if it matters.

use std::fs;
use std::time::{Duration, SystemTime};

use super::super::cause::Cause;
use super::super::objects::Object;
use super::super::{Collect, Id, PublicKey, SigningKey};
use super::damage::files;
use super::*;

/// A key that signs, and what trusts it.
fn key() -> (Arc<SigningKey>, PublicKey) {
    let (secret, public) = SigningKey::generate().unwrap();
    let signing = SigningKey::from_pem(secret.as_bytes()).unwrap();
    let trusted = PublicKey::from_pem(public.as_bytes()).unwrap();
    assert_eq!(trusted, [signing.public()]);
    (Arc::new(signing), trusted[0])
}

impl Place {
    /// The store as somebody sees it who trusts these keys.
    fn trusting(&self, keys: &[PublicKey]) -> Arc<Store> {
        let keys = keys.to_vec();
        self.opened_with(&self.keyring().trusting(move || Ok(keys.clone()))).unwrap()
    }

    fn signed(&self, second: i64, key: &Arc<SigningKey>) -> Snapshot {
        let mut made = new("web", second, &noise(1, BLOCK), None);
        made.sign = Some(Arc::clone(key));
        self.store.create(made, &Progress::default()).unwrap()
    }
}

/// Why a snapshot is not opened.
fn refused(store: &Arc<Store>, snapshot: &Snapshot) -> (Kind, Option<Cause>) {
    let error = read(store, snapshot).unwrap_err();
    (error.kind(), error.cause::<Cause>().cloned())
}

#[test]
fn only_what_a_trusted_key_signed_is_opened() {
    for place in Place::both() {
        let (anna, annas) = key();
        let (_, others) = key();
        let signed = place.signed(1, &anna);
        let unsigned = place.create("web", 2, b"unsigned", None);
        let store = place.trusting(&[others, annas]);
        assert!(read(&store, &signed).is_ok());
        assert_eq!(refused(&store, &unsigned), (Kind::Refused, Some(Cause::Unsigned)));
        let wary = place.trusting(&[others]);
        let by_anna = Cause::SignedByOthers(vec![annas]);
        assert_eq!(refused(&wary, &signed), (Kind::Refused, Some(by_anna)));
        // It can be signed later, by several, and says so.
        store.sign(unsigned.id, &anna).unwrap();
        let (ben, bens) = key();
        store.sign(unsigned.id, &ben).unwrap();
        assert!(read(&store, &unsigned).is_ok());
        let told = store.signatures(&store.snapshots().unwrap()).unwrap();
        assert_eq!(
            told[&signed.id].iter().map(|it| (it.key, it.trusted)).collect::<Vec<_>>(),
            [(annas, true)]
        );
        let mut of_both = [(annas, true), (bens, false)];
        of_both.sort();
        assert_eq!(
            told[&unsigned.id].iter().map(|it| (it.key, it.trusted)).collect::<Vec<_>>(),
            of_both
        );
        // Without a trusted key nothing is asked for.
        assert!(read(&place.again().unwrap(), &signed).is_ok());
    }
}

#[test]
fn a_signature_holds_for_one_record_of_one_store() {
    for place in Place::both() {
        let (anna, annas) = key();
        let first = place.signed(1, &anna);
        let second = place.create("web", 2, b"second", None);
        let store = place.trusting(&[annas]);
        let path = |id| place.path().join(Object::Signature(id).to_string());
        let of_first = files(&place.path().join("signatures")).remove(0);
        let bytes = fs::read(&of_first).unwrap();
        // That of the first under the name of the second's.
        store.sign(second.id, &anna).unwrap();
        let of_second = store.objects.list(super::super::objects::Sort::Signatures).unwrap();
        let of_second = of_second.iter().find(|it| it.id.0[..16] == second.id.0[..16]).unwrap().id;
        fs::write(path(of_second), &bytes).unwrap();
        let store = place.trusting(&[annas]);
        assert!(matches!(refused(&store, &second), (Kind::Corrupt, Some(Cause::Name(_)))));
        assert!(read(&store, &first).is_ok());
        // Each of its bytes counts.
        for at in (0..bytes.len()).step_by(7) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            fs::write(&of_first, &bad).unwrap();
            let (kind, _) = refused(&place.trusting(&[annas]), &first);
            assert!(matches!(kind, Kind::Corrupt | Kind::Unsupported), "byte {at}: {kind:?}");
        }
        fs::remove_file(&of_first).unwrap();
        assert_eq!(refused(&place.trusting(&[annas]), &first).1, Some(Cause::Unsigned));
    }
    // The same record and signature, carried into another store.
    let (anna, annas) = key();
    let (place, other) = (Place::new(), Place::new());
    let made = place.signed(1, &anna);
    other.create("else", 1, &noise(1, BLOCK), None);
    for part in ["snapshots", "signatures"] {
        for path in files(&place.path().join(part)) {
            fs::copy(&path, other.path().join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
    assert!(read(&other.again().unwrap(), &made).is_ok());
    let refused = refused(&other.trusting(&[annas]), &made);
    assert_eq!(refused, (Kind::Corrupt, Some(Cause::Signature(annas))));
}

#[test]
fn signatures_of_what_is_gone_are_told() {
    let place = Place::new();
    let (anna, _) = key();
    let (first, second) = (place.signed(1, &anna), place.signed(2, &anna));
    let left = |records: &[Id]| {
        place.store.signatures_without(&records.iter().copied().collect()).unwrap().len()
    };
    assert_eq!((left(&[first.id, second.id]), left(&[second.id]), left(&[])), (0, 1, 2));
    // Collecting removes them once nobody can be at work on their record.
    place.store.remove(first.id).unwrap();
    let how = Collect { grace: Duration::ZERO, unused: 100, dry_run: false };
    place.store.collect(&how, &|| {}).unwrap();
    assert_eq!(left(&[]), 2);
    for path in files(&place.path().join("signatures")) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    }
    place.store.collect(&how, &|| {}).unwrap();
    assert_eq!((left(&[second.id]), left(&[])), (0, 1));
}

#[test]
fn only_keys_in_pem_are_keys() {
    let (secret, public) = SigningKey::generate().unwrap();
    let usage = |result: Result<_>| {
        assert!(matches!(result, Err(error) if error.kind() == Kind::Usage));
    };
    usage(SigningKey::from_pem(public.as_bytes()).map(drop));
    usage(SigningKey::from_pem(b"").map(drop));
    usage(PublicKey::from_pem(secret.as_bytes()).map(drop));
    usage(PublicKey::from_pem(b"ssh-ed25519 AAAA").map(drop));
    usage(PublicKey::from_pem(public.replace("END", "BEGIN").as_bytes()).map(drop));
    usage(PublicKey::from_pem(public.replace('M', "*").as_bytes()).map(drop));
    // Of another kind of key, whatever its length.
    usage(PublicKey::from_pem(public.replace("MCowBQYDK2Vw", "MCowBQYDK2Vu").as_bytes()).map(drop));
    let two = PublicKey::from_pem(format!("of anna\n{public}{public}").as_bytes()).unwrap();
    assert_eq!(two.len(), 2);
    let locked = secret.replace("PRIVATE", "ENCRYPTED PRIVATE");
    assert_eq!(SigningKey::from_pem(locked.as_bytes()).unwrap_err().kind(), Kind::Encrypted);
}
