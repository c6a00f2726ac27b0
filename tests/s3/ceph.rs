//! A Ceph object gateway with all it needs, on loopback, for as long as a test runs.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{run, tool};

/// Keys of the only user.
pub(crate) const KEY: &str = "testkey";
pub(crate) const SECRET: &str = "testsecret";

/// Longer than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Ceph {
    dir: tempfile::TempDir,
    daemons: Vec<Child>,
    port: u16,
}

impl Ceph {
    /// One monitor, one OSD on a file, and the gateway.
    pub(crate) fn start() -> Self {
        let [monitor, port] = free_ports();
        let dir = tempfile::tempdir().unwrap();
        for part in ["mon", "osd", "rgw", "run"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        let cluster = uuid();
        fs::write(dir.path().join("ceph.conf"), config(dir.path(), &cluster, monitor, port))
            .unwrap();
        let mut ceph = Self { dir, daemons: Vec::new(), port };
        let (keyring, map) = (ceph.path("keyring"), ceph.path("monmap"));
        let mut authtool = tool("ceph-authtool", "ceph-common");
        let caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"];
        run(authtool
            .arg("--create-keyring")
            .arg(&keyring)
            .args(["--gen-key", "-n", "client.admin"])
            .args(caps));
        let mut monmap = tool("monmaptool", "ceph-common");
        let address = format!("[v1:127.0.0.1:{monitor}]");
        run(monmap.args(["--create", "--addv", "a", &address, "--fsid", &cluster]).arg(&map));
        let mut make = ceph.tool("ceph-mon", "ceph-mon");
        run(make.args(["--mkfs", "-i", "a", "--monmap"]).arg(&map).arg("--keyring").arg(&keyring));
        ceph.daemon("ceph-mon", "ceph-mon", &["-i", "a"]);
        let osd = uuid();
        run(ceph.tool("ceph", "ceph-common").args(["osd", "new", &osd]));
        let mut make = ceph.tool("ceph-osd", "ceph-osd");
        run(make.args(["-i", "0", "--mkfs", "--osd-uuid", &osd]));
        ceph.daemon("ceph-osd", "ceph-osd", &["-i", "0"]);
        let mut user = ceph.tool("radosgw-admin", "radosgw");
        run(user.args(["user", "create", "--uid", "test", "--display-name", "test"]).args([
            "--access-key",
            KEY,
            "--secret-key",
            SECRET,
        ]));
        ceph.daemon("radosgw", "radosgw", &["-n", "client.rgw"]);
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ceph.check();
            assert!(began.elapsed() < PATIENCE, "the gateway does not start");
            thread::sleep(Duration::from_millis(50));
        }
        ceph
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tool(&self, program: &str, package: &str) -> Command {
        let mut command = tool(program, package);
        command.arg("-c").arg(self.path("ceph.conf"));
        command
    }

    fn daemon(&mut self, program: &str, package: &str, args: &[&str]) {
        // It ends with the test, however that ends.
        let daemon = self.tool(program, package);
        let mut command = tool("setpriv", "util-linux");
        command.args(["--pdeathsig", "KILL"]).arg(daemon.get_program()).args(daemon.get_args());
        let log = fs::File::create(self.path(&format!("{program}.out"))).unwrap();
        command.arg("-f").args(args).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    fn check(&mut self) {
        for daemon in &mut self.daemons {
            if let Some(status) = daemon.try_wait().unwrap() {
                let outputs = ["ceph-mon", "ceph-osd", "radosgw"]
                    .map(|name| fs::read_to_string(self.dir.path().join(format!("{name}.out"))));
                panic!("a daemon ended, {status}: {outputs:?}");
            }
        }
    }

    /// Makes a bucket, by another program than ours.
    pub(crate) fn make_bucket(&self, name: &str) {
        self.curl(&["-X", "PUT"], name);
    }

    /// Names of the objects of a bucket, as another program lists them.
    pub(crate) fn objects(&self, bucket: &str) -> Vec<String> {
        let mut list = self.tool("radosgw-admin", "radosgw");
        list.args(["bucket", "list", "--bucket", bucket, "--max-entries", "100000"]);
        let listed: serde_json::Value = serde_json::from_slice(&run(&mut list).stdout).unwrap();
        let names = listed.as_array().unwrap().iter();
        names.map(|object| object["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Reads, writes or removes an object, by another program than ours: what the server answers.
    pub(crate) fn curl(&self, args: &[&str], path: &str) -> Vec<u8> {
        let mut curl = tool("curl", "curl");
        curl.args(["-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user"]);
        // This one does not sign what it sends by itself.
        curl.arg(format!("{KEY}:{SECRET}")).args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
        curl.args(args);
        run(curl.arg(format!("{}/{path}", self.endpoint()))).stdout
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn uuid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All are taken before one is let go.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn config(dir: &Path, cluster: &str, monitor: u16, port: u16) -> String {
    let dir = dir.display();
    format!(
        "[global]
fsid = {cluster}
mon host = v1:127.0.0.1:{monitor}
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
ms bind msgr2 = false
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 4294967296
bluestore block wal create = false
osd memory target = 939524096
log file = {dir}/$name.log
mon cluster log file = {dir}/cluster.log
admin socket = {dir}/run/$name.$pid.asok
run dir = {dir}/run
keyring = {dir}/keyring
[mon.a]
mon data = {dir}/mon
[osd.0]
osd data = {dir}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw data = {dir}/rgw
"
    )
}
