//! What a configuration has done before and after a snapshot.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::error::{Error, Kind, Result, ResultExt};

/// How long a command that is to end may take for it.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked for whether one has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Has the shell do `line` in `folder`, within `timeout`, unless `stop` is set meanwhile.
///
/// It gets no input, and what it prints goes to our standard error. It is the leader of a process group of its own: a Ctrl-C
/// at the terminal reaches us and not it, so that what thaws a machine is not interrupted.
///
/// # Errors
/// [`Kind::Io`] unless it ended well.
pub(super) fn run(
    line: &str,
    folder: &Path,
    variables: &[(&str, &str)],
    timeout: Duration,
    stop: Option<&AtomicBool>,
) -> Result<()> {
    let out = io::stderr().as_fd().try_clone_to_owned().map_err(Error::io)?;
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).current_dir(folder).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stdout(out).process_group(0);
    let mut child = command.spawn().within(|| "/bin/sh")?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(Error::io)? {
            return ended(status);
        }
        let is_late = began.elapsed() > timeout;
        if is_late || stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            end(&mut child)?;
            let why = if is_late { "took longer than its timeout" } else { "stopped" };
            return Err(Error::new(Kind::Io, why));
        }
        thread::sleep(LOOK);
    }
}

fn ended(status: ExitStatus) -> Result<()> {
    match (status.success(), status.code(), status.signal()) {
        (true, ..) => Ok(()),
        (_, Some(code), _) => Err(Error::new(Kind::Io, format!("ended with status {code}"))),
        (.., signal) => {
            Err(Error::new(Kind::Io, format!("ended by signal {}", signal.unwrap_or_default())))
        }
    }
}

/// Ends it and all that it started: politely first.
fn end(child: &mut Child) -> Result<()> {
    let Some(leader) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let signal = |signal| {
        // None is left if it has just ended.
        let _ = rustix::process::kill_process_group(leader, signal);
    };
    signal(Signal::TERM);
    let asked = Instant::now();
    // For as long as it is not waited for, nobody else can have its number.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while asked.elapsed() < GRACE && matches!(waitid(WaitId::Pid(leader), look), Ok(None)) {
        thread::sleep(LOOK);
    }
    // It, or what it left behind.
    signal(Signal::KILL);
    child.wait().map(drop).map_err(Error::io)
}

#[cfg(test)]
mod tests {
    use std::env::temp_dir;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn told(line: &str, timeout: Duration, stop: Option<&AtomicBool>) -> String {
        run(line, &temp_dir(), &[("NAME", "value")], timeout, stop).unwrap_err().to_string()
    }

    #[test]
    fn how_it_ended_is_told() {
        run("test \"$NAME\" = value && ! read x", &temp_dir(), &[("NAME", "value")], MINUTE, None)
            .unwrap();
        assert_eq!(told("exit 3", MINUTE, None), "ended with status 3");
        assert_eq!(told("kill -9 $$", MINUTE, None), "ended by signal 9");
    }

    #[test]
    fn it_ends_when_it_is_late_or_not_wanted_any_more() {
        let late = told("sleep 1000", Duration::from_millis(50), None);
        assert_eq!(late, "took longer than its timeout");
        let stop = AtomicBool::new(true);
        assert_eq!(told("sleep 1000 & wait", MINUTE, Some(&stop)), "stopped");
    }
}
