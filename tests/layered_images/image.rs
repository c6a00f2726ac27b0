//! An image of four layers, everywhere that images lie, and what umoci unpacks of it.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stratafs::block::Cache;
use stratafs::error::Result;
use stratafs::oci::prepare::Progress;
use stratafs::oci::{Algorithm, Digest};
use stratafs::open::Opener;
use stratafs::open::layered::{self, Layered};
use stratafs::policy::Policy;

use crate::seen::{self, Tree};
use crate::support::{fixture, require_root, run, strata, tool};

pub(crate) const NOBODY: u32 = 65534;

/// A folder with the tars `1.tar` to `4.tar` and the layout `L`, which has the image `v1` of four gzip layers
/// and `mixed`, the same with the second and fourth in zstd.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let place = Self { dir };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layered_images/layers.py");
        let seed = std::env::var("STRATA_SEED").unwrap_or_else(|_| "1".into());
        run(place.tool("python3", "python3").arg(script).args([&seed, "."]));
        if std::env::var_os("STRATA_LAYERED_DEBIAN").is_some() {
            place.put_debian_below();
        }
        place.umoci(&["init", "--layout", "L"]);
        place.umoci(&["new", "--image", "L:v1"]);
        for layer in ["1.tar", "2.tar", "3.tar", "4.tar"] {
            place.umoci(&["raw", "add-layer", "--image", "L:v1", layer]);
        }
        place.umoci(&["config", "--image", "L:v1", "--config.cmd", "/bin/sh"]);
        place.mix();
        for name in ["mnt", "cache"] {
            fs::create_dir(place.path(name)).unwrap();
            fs::set_permissions(place.path(name), PermissionsExt::from_mode(0o700)).unwrap();
        }
        place
    }

    /// A whole Debian root in front of what the first layer has.
    fn put_debian_below(&self) {
        fs::create_dir(self.path("debian")).unwrap();
        let disk = fixture("debian.raw");
        let mut mount = strata();
        run(mount.args(["mount", "--suid", "--dev"]).arg(disk).arg(self.path("debian")));
        let tar = ["--xattrs", "--xattrs-include=*", "--format=pax", "-cf", "debian.tar", "-C"];
        let made = self.tool("tar", "tar").args(tar).args(["debian", "."]).output().unwrap();
        run(strata().arg("unmount").arg(self.path("debian")));
        assert!(made.status.success(), "{made:?}");
        run(self.tool("tar", "tar").args(["-Af", "debian.tar", "1.tar"]));
        fs::rename(self.path("debian.tar"), self.path("1.tar")).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A reference to something here.
    pub(crate) fn at(&self, word: &str, name: &str) -> String {
        format!("{word}{}", self.path(name).display())
    }

    pub(crate) fn tool(&self, program: &str, package: &str) -> Command {
        let mut command = tool(program, package);
        command.current_dir(self.dir.path());
        command
    }

    #[track_caller]
    pub(crate) fn umoci(&self, args: &[&str]) {
        run(self.tool("umoci", "umoci").args(args));
    }

    #[track_caller]
    pub(crate) fn copy(&self, from: &str, to: &str) {
        self.copy_with(&[], from, to);
    }

    #[track_caller]
    pub(crate) fn copy_with(&self, options: &[&str], from: &str, to: &str) {
        let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        let mut skopeo = self.tool("skopeo", "skopeo");
        run(skopeo.args(["copy", "-q"]).args(insecure).args(options).args([from, to]));
    }

    /// What umoci unpacks.
    pub(crate) fn unpacked(&self) -> Tree {
        self.umoci(&["unpack", "--image", "L:v1", "B"]);
        seen::of_folder(&self.path("B/rootfs"))
    }

    /// The same of another image.
    pub(crate) fn unpacked_of(&self, image: &str) -> Tree {
        let bundle = format!("B-{image}");
        self.umoci(&["unpack", "--image", &format!("L:{image}"), &bundle]);
        seen::of_folder(&self.path(&bundle).join("rootfs"))
    }

    /// The program, with the cache here.
    pub(crate) fn strata(&self) -> Command {
        let mut command = strata();
        command.current_dir(self.dir.path()).env("STRATA_CACHE_DIR", self.path("cache"));
        command
    }

    /// Hands the folders that a mount needs to an ordinary user, who may then read the layout, too.
    pub(crate) fn give_to_nobody(&self) {
        run(self.tool("chmod", "coreutils").args(["-R", "a+rX", "L"]));
        for name in ["mnt", "cache"] {
            chown(self.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// Opens a reference with the cache here, and tells how much was read for it.
    pub(crate) fn open(&self, reference: &str) -> Result<(Layered, u64)> {
        let progress = Arc::new(Progress::default());
        let mut opener = Opener::new(Policy::default(), Cache::new(64 << 20));
        opener.layered = layered::Options {
            cache_dir: Some(self.path("cache")),
            cache_limit: 1 << 30,
            progress: Arc::clone(&progress),
            ..layered::Options::default()
        };
        let known = opener.layered_reference(reference.as_ref())?;
        let known = known.unwrap_or_else(|| panic!("{reference} is no layered image"));
        let layered = opener.layered(&known)?;
        Ok((layered, progress.total.load(Ordering::Relaxed)))
    }

    /// The files of the cache.
    pub(crate) fn kept(&self) -> Vec<PathBuf> {
        let mut kept: Vec<_> =
            fs::read_dir(self.path("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
        kept.sort();
        kept
    }

    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.path("L/blobs").join(digest.replace(':', "/"))
    }

    fn json(&self, path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The manifest of an image of the layout.
    pub(crate) fn manifest(&self, name: &str) -> Value {
        let index = self.json(&self.path("L/index.json"));
        let named = |manifest: &&Value| {
            manifest["annotations"]["org.opencontainers.image.ref.name"] == name
        };
        let found = index["manifests"].as_array().unwrap().iter().find(named);
        self.json(&self.blob(found.unwrap()["digest"].as_str().unwrap()))
    }

    /// Puts a document or layer into the layout: its descriptor without a media type.
    pub(crate) fn put(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(Algorithm::Sha256, bytes).to_string();
        fs::write(self.blob(&digest), bytes).unwrap();
        json!({ "digest": digest, "size": bytes.len() })
    }

    /// Names `descriptor`, of a manifest or an index, in the layout.
    pub(crate) fn name(&self, name: &str, mut descriptor: Value, media_type: &str) {
        descriptor["mediaType"] = media_type.into();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        let path = self.path("L/index.json");
        let mut index = self.json(&path);
        index["manifests"].as_array_mut().unwrap().push(descriptor);
        fs::write(path, index.to_string()).unwrap();
    }

    fn mix(&self) {
        let mut manifest = self.manifest("v1");
        for layer in [1, 3] {
            let tar = fs::read(self.path(&format!("{}.tar", layer + 1))).unwrap();
            let mut made = self.put(&zstd::bulk::compress(&tar, 3).unwrap());
            made["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd".into();
            manifest["layers"][layer] = made;
        }
        manifest["mediaType"] = MANIFEST.into();
        let put = self.put(manifest.to_string().as_bytes());
        self.name("mixed", put, MANIFEST);
    }
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever a failed test left, the newest first.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        let ours: Vec<_> = points.filter(|point| point.starts_with(self.dir.path())).collect();
        for point in ours.iter().rev() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A registry on a loopback port that ends with the value.
pub(crate) struct Registry {
    process: Child,
    pub(crate) host: String,
}

impl Registry {
    pub(crate) fn start(place: &Place) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let storage = place.path("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.display()
        );
        fs::write(place.path("registry.yml"), config).unwrap();
        let log = File::create(place.path("registry.log")).unwrap();
        let mut server = place.tool("docker-registry", "docker-registry");
        server.args(["serve", "registry.yml"]).stdout(Stdio::null()).stderr(log);
        let registry = Self { process: server.spawn().unwrap(), host: format!("127.0.0.1:{port}") };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
