//! The suite of every place for stores, and random operations beside plain copies, in buckets: straight, and behind a
//! proxy that fails three of ten requests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use stratafs::store::objects::{Bucket, BucketOptions, Objects};

use super::ceph::{Ceph, KEY, SECRET};
use super::model::Model;
use super::proxy::{Fault, Proxy};
use super::{Place, seed, suite};

/// A bucket of stores.
struct Stores<'a> {
    place: Place,
    ceph: &'a Ceph,
}

impl suite::Place for Stores<'_> {
    fn strata(&self, args: &[&str]) -> Command {
        let mut command = self.place.strata(args);
        if args.first() != Some(&"unmount") {
            command.arg(format!("--request-timeout={}", self.place.timeout));
        }
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    fn store(&self, name: &str) -> String {
        format!("s3://jobs/{name}")
    }

    fn bytes(&self, name: &str) -> Vec<Vec<u8>> {
        let objects = self.ceph.objects("jobs");
        let prefix = format!("{name}/");
        let names = objects.iter().filter(|object| object.starts_with(&prefix));
        names.map(|object| self.ceph.curl(&[], &format!("jobs/{object}"))).collect()
    }
}

/// So many random operations on two stores in a bucket.
fn model(place: &Place, seed: u64, operations: u64) {
    let credentials = place.path("credentials");
    let keys = format!("[test]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(&credentials, keys).unwrap();
    let options = BucketOptions {
        endpoint: Some(place.endpoint.clone()),
        profile: Some("test".to_owned()),
        credentials: Some(credentials),
        ..BucketOptions::default()
    };
    let mut make = |name: &str| -> Arc<dyn Objects> {
        Arc::new(Bucket::make("jobs", &format!("model-{name}"), &options).unwrap())
    };
    let mut model = Model::new(seed, &mut make);
    (0..operations).for_each(|_| model.step());
    println!("{operations} operations from seed {seed}: {:?}", model.finish());
}

/// Operations of the model.
fn operations(default: u64) -> u64 {
    std::env::var("STRATA_S3_OPERATIONS").map_or(default, |value| value.parse().unwrap())
}

#[test]
fn a_bucket_passes_the_suite() {
    let ceph = Ceph::start();
    ceph.make_bucket("jobs");
    let stores = Stores { place: Place::new(ceph.endpoint()), ceph: &ceph };
    suite::all(&stores);
    model(&stores.place, seed(), operations(40));
}

#[test]
fn a_bucket_that_fails_passes_the_suite() {
    let ceph = Ceph::start();
    ceph.make_bucket("jobs");
    let proxy = Proxy::start(ceph.port(), seed());
    let mut stores = Stores { place: Place::new(proxy.endpoint()), ceph: &ceph };
    stores.place.timeout = 20;
    proxy.fail(30, &Fault::ALL);
    suite::all(&stores);
    let (requests, faults) = proxy.counted();
    assert!(faults * 100 > requests * 20, "{faults} of {requests} failed");
    println!("{faults} of {requests} requests failed");
    // What this asks for has no time limit of its own, so nothing hangs here.
    proxy.fail(30, &[Fault::Unavailable, Fault::Internal, Fault::Reset, Fault::Lost, Fault::Short]);
    model(&stores.place, seed(), operations(40) / 4);
}
