//! `strata commit --to STORE::SERIES`: a delta, or any disk, becomes a snapshot.
//!
//! What lies in a snapshot below the delta is known by its hashes, and not read.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;

use super::super::snapshot::{host, newest, summary, watched};
use super::super::warn;
use super::Args;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::Reference;
use crate::store::objects::Location;
use crate::store::{DiskSource, NewDisk, NewSnapshot, Reading, check_name};

/// Makes a snapshot in the series that `to` names.
pub(super) fn commit(args: &Args, to: &Reference, stop: &Arc<AtomicBool>) -> Result<String> {
    if args.layer || args.above.is_some() || args.overwrite || args.source_date_epoch.is_some() {
        let message =
            "--layer, --above, --overwrite and --source-date-epoch are not about snapshots";
        return Err(Error::new(Kind::Usage, message));
    }
    let series = to.snapshot.clone().unwrap_or_default();
    check_name("series", &series)?;
    let named = vec![Location::parse(to.path.as_os_str())?];
    let opener = args.tree.open.opener_beside(Arc::clone(stop), named);
    let store = opener.store(&to.path)?;
    let reference = Reference::from(args.what.as_os_str());
    let disk = opener.disk(&reference)?;
    warn(&disk.warnings);
    // What the delta is above, if it is of this store; else what the series had last.
    let below = disk.stored.as_ref().map(|stored| store.snapshot(stored.snapshot.id));
    let (parent, name) = match (below, &disk.stored) {
        (Some(Ok(below)), Some(stored)) => (Some(below), stored.disk.name.clone()),
        (Some(Err(error)), _) if error.kind() != Kind::NotFound => return Err(error),
        _ => (newest(&store, &series)?, "disk".to_owned()),
    };
    let layers = match reference.snapshot {
        // Another snapshot of an image lies in the same file.
        Some(_) => Vec::new(),
        None => disk.source_layers()?,
    };
    let new = NewSnapshot {
        series,
        time: Timestamp::now(),
        tags: Vec::new(),
        parent,
        source: args.what.to_string_lossy().into_owned(),
        host: host(),
        sign: None,
        reading: Reading::default(),
        disks: vec![NewDisk { name, source: DiskSource::Image(disk.source), layers }],
    };
    let made = watched(&store, new, Arc::clone(stop))
        .within(|| args.what.to_string_lossy().into_owned())?;
    Ok(summary(&made))
}
