//! A real registry on a loopback port.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stratafs::error::{Kind, Result};
use stratafs::oci::registry::Timing;
use stratafs::oci::{self, Image, Options, Reference};

use crate::made::*;
use crate::support::{run, tool};

/// A registry that ends with the value.
struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    /// Serves what is below `dir`; `more` goes into its configuration.
    fn start(dir: &Path, name: &str, more: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let host = format!("{name}:{port}");
        let storage = dir.join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{more}",
            storage.display()
        );
        let file = dir.join("registry.yml");
        fs::write(&file, config).unwrap();
        let process = tool("docker-registry", "docker-registry")
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, host };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn reference(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.host)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn open_with(text: &str, options: &Options) -> Result<Image> {
    oci::open(&parse(text)?.unwrap(), options)
}

/// Options that find credentials in `file` alone.
fn options(file: &Path) -> Options {
    let mut options = Options::default();
    options.registry.auth_files = vec![file.to_owned()];
    options
}

#[test]
fn a_registry_gives_the_same_layers() {
    let dir = layout();
    let dir = dir.path();
    let registry = Registry::start(dir, "127.0.0.1", "");
    let wanted = layers(&open(at(dir, "oci:", "L:v1")).unwrap());
    let tagged = registry.reference("team/app:v1");
    copy(dir, &[], "oci:L:v1", &tagged);
    copy(
        dir,
        &["--dest-compress-format", "zstd"],
        "oci:L:v1",
        &registry.reference("team/app:zstd"),
    );
    copy(dir, &["--format", "v2s2"], "oci:L:v1", &registry.reference("app:docker"));
    let none = options(Path::new("/nowhere"));

    let image = open_with(&tagged, &none).unwrap();
    let digest = image.manifest_digest.clone().unwrap().to_string();
    assert_eq!(digest, manifest_digest(dir, &tagged));
    let documents = image.transferred();
    assert!(documents < 10_000, "{documents} bytes for a manifest and a config");
    // Each layer is streamed once, then read by ranges.
    assert!(layers(&image) == wanted);
    let size: u64 = image.layers.iter().map(|layer| layer.size).sum();
    assert_eq!(image.transferred(), documents + 2 * size);

    for name in [
        "team/app:zstd",
        "app:docker",
        &format!("team/app@{digest}"),
        &format!("team/app:none@{digest}"),
    ] {
        let image = open_with(&registry.reference(name), &none).unwrap();
        assert!(layers(&image) == wanted, "{name}");
    }
    let told = |name: &str| {
        let error = open_with(&registry.reference(name), &none).unwrap_err();
        (error.kind(), error.to_string())
    };
    let host = &registry.host;
    assert_eq!(
        told("team/app:v9"),
        (
            Kind::NotFound,
            format!("docker://{host}/team/app:v9: {host} answers 404 Not Found: manifest unknown")
        )
    );
    let (kind, line) = told("nobody");
    assert_eq!(kind, Kind::NotFound);
    assert!(line.contains("404 Not Found"), "{line}");
    drop(registry);
    let error = image.layers[0].blob.stream().err().unwrap();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[test]
fn an_index_in_a_registry_is_chosen_from() {
    let dir = layout();
    let dir = dir.path();
    let registry = Registry::start(dir, "127.0.0.1", "");
    let index = fs::read(dir.join("L/index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let host = oci::Platform::host();
    index["manifests"][0]["platform"] =
        serde_json::json!({ "os": host.os, "architecture": host.architecture });
    let bytes = index.to_string().into_bytes();
    let digest = oci::Digest::of(oci::Algorithm::Sha256, &bytes);
    fs::write(dir.join("L/blobs/sha256").join(digest.hex()), &bytes).unwrap();
    let outer = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": oci::manifest::media_type::OCI_INDEX, "digest": digest.to_string(), "size": bytes.len(),
        "annotations": { "org.opencontainers.image.ref.name": "many" },
    }] });
    fs::write(dir.join("L/index.json"), outer.to_string()).unwrap();
    let reference = registry.reference("app:many");
    copy(dir, &["--all"], "oci:L:many", &reference);
    let mut options = options(Path::new("/nowhere"));
    options.platform = Some(host);
    let image = open_with(&reference, &options).unwrap();
    assert_eq!(layers(&image), layers(&open(at(dir, "oci:", "L:many")).unwrap()));
    options.platform = Some("windows/amd64".parse().unwrap());
    let error = open_with(&reference, &options).unwrap_err();
    assert!(
        error.to_string().contains("no image for windows/amd64 in it; there is linux/"),
        "{error}"
    );
}

#[test]
fn passwords_are_those_that_skopeo_and_helpers_keep() {
    let dir = layout();
    let dir = dir.path();
    let made = run(tool("htpasswd", "apache2-utils").args(["-nbB", "user", "pass:word"]));
    fs::write(dir.join("htpasswd"), made.stdout).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: r\n    path: {}/htpasswd\n", dir.display());
    let registry = Registry::start(dir, "127.0.0.1", &auth);
    let reference = registry.reference("app:v1");
    let file = dir.join("auth.json");
    let login = ["login", "--tls-verify=false", "-u", "user", "-p", "pass:word", "--authfile"];
    run(skopeo().args(login).arg(&file).arg(&registry.host));
    copy(dir, &["--dest-creds", "user:pass:word"], "oci:L:v1", &reference);
    let wanted = layers(&open(at(dir, "oci:", "L:v1")).unwrap());
    assert!(layers(&open_with(&reference, &options(&file)).unwrap()) == wanted);

    let error = open_with(&reference, &options(Path::new("/nowhere"))).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!(error.hint(), Some(&*format!("log in: skopeo login {}", registry.host)));
    let wrong = dir.join("wrong.json");
    let said = fs::read_to_string(&file).unwrap();
    let start = said.find("dXNl").expect("user in base64");
    fs::write(&wrong, said.replacen(&said[start..start + 4], "dXNm", 1)).unwrap();
    let error = open_with(&reference, &options(&wrong)).unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(!format!("{error} {error:?}").contains("pass"), "{error:?}");

    // A credential helper, found by the PATH: in a process of its own, whose environment it is.
    let helper = dir.join("docker-credential-ours");
    let answer = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {} ] || exit 1\necho '{{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"pass:word\"}}'\n",
        registry.host
    );
    fs::write(&helper, answer).unwrap();
    run(Command::new("chmod").arg("755").arg(&helper));
    for config in [
        format!("{{\"credHelpers\":{{\"{}\":\"ours\"}}}}", registry.host),
        format!("{{\"auths\":{{\"{}\":{{}}}},\"credsStore\":\"ours\"}}", registry.host),
    ] {
        fs::write(&file, config).unwrap();
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", dir.display());
        again(
            "opens_what_the_environment_says",
            &[
                ("PATH", &path),
                ("REGISTRY_AUTH_FILE", file.to_str().unwrap()),
                ("STRATA_TEST_OPENS", &reference),
            ],
        );
    }
}

/// Runs a test that is ignored otherwise, in an environment of its own.
#[track_caller]
fn again(test: &str, environment: &[(&str, &str)]) {
    let name = format!("registry::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    run(command.args([&*name, "--exact", "--ignored"]).envs(environment.iter().copied()));
}

#[test]
#[ignore = "run by other tests, with what it opens in its environment"]
fn opens_what_the_environment_says() {
    let text = std::env::var("STRATA_TEST_OPENS").expect("run by another test");
    assert_eq!(open_with(&text, &Options::default()).unwrap().layers.len(), 3);
}

#[test]
fn encryption_is_verified_unless_told_otherwise() {
    let dir = layout();
    let dir = dir.path();
    // An authority, and a certificate by it: one that signs itself is good for neither.
    fs::write(dir.join("names"), "subjectAltName=DNS:localhost").unwrap();
    let openssl = |args: &str| {
        run(tool("openssl", "openssl").current_dir(dir).args(args.split(' ')));
    };
    let key = "req -newkey rsa:2048 -nodes";
    openssl(&format!("{key} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
    openssl(&format!("{key} -subj /CN=localhost -keyout key.pem -out request.pem"));
    let by = "-CA ca.pem -CAkey ca.key -CAcreateserial";
    openssl(&format!("x509 -req -in request.pem {by} -days 2 -extfile names -out cert.pem"));
    let tls =
        format!("  tls:\n    certificate: {0}/cert.pem\n    key: {0}/key.pem\n", dir.display());
    let registry = Registry::start(dir, "localhost", &tls);
    let reference = registry.reference("app:v1");
    copy(dir, &[], "oci:L:v1", &reference);
    let mut options = options(Path::new("/nowhere"));
    options.registry.timing = Timing { tries: 2, ..Timing::default() };
    let error = open_with(&reference, &options).unwrap_err();
    assert!(error.to_string().contains("has no trusted connection"), "{error}");
    assert!(error.hint().unwrap().contains("/ca.crt"), "{:?}", error.hint());
    options.registry.insecure = true;
    open_with(&reference, &options).unwrap();
    let authority = dir.join("ca.pem");
    again(
        "opens_what_the_environment_says",
        &[("SSL_CERT_FILE", authority.to_str().unwrap()), ("STRATA_TEST_OPENS", &reference)],
    );
}

#[test]
fn references_are_shown_as_they_are_written() {
    let reference = parse("docker://debian").unwrap().unwrap();
    assert!(matches!(&reference, Reference::Registry(name) if name.host == "docker.io"));
    assert_eq!(reference.to_string(), "docker://docker.io/library/debian:latest");
}
