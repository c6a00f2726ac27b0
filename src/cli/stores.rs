//! How a store is named on the command line, and reached.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::parse_size;
use super::secrets::SecretArgs;
use crate::oci::cache::LayerCache;
use crate::open::stored;
use crate::store::objects::{BucketOptions, Location};

/// Where a store lies: a folder, or a bucket.
pub(super) fn location_parser() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(|text: OsString| Location::parse(&text))
}

/// How stores in object storage are reached.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Object storage")]
pub(crate) struct StoreArgs {
    /// The URL of the server [default: $AWS_ENDPOINT_URL, else AWS]
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,

    /// The region of the bucket [default: $AWS_REGION, else that of the profile]
    #[arg(long, value_name = "NAME")]
    pub(super) region: Option<String>,

    /// Take credentials from this profile in ~/.aws [default: $AWS_PROFILE]
    ///
    /// Without one they are those of $AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, of the default profile, or those
    /// that the machine is given where it runs.
    #[arg(long, value_name = "NAME")]
    pub(super) profile: Option<String>,

    /// Whether the bucket is named in the path of a URL, not by its host [default: with --endpoint]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    pub(super) path_style: Option<bool>,

    /// Take plain HTTP to other machines than this one
    #[arg(long)]
    pub(super) allow_http: bool,

    /// Give one operation up after so many seconds, however often it was tried
    #[arg(long, value_name = "SECONDS", default_value_t = BucketOptions::TIMEOUT.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) request_timeout: u64,

    /// What is read of a bucket may take so much in the cache folder; 0 keeps nothing there
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = parse_size)]
    pub(super) store_cache_size: u64,

    #[command(flatten)]
    pub(super) secrets: SecretArgs,
}

/// The folder of the cache where what is read of buckets is kept.
pub(super) const PIECES: &str = "stores";

/// Where that is for whoever runs this.
pub(super) fn piece_cache_dir() -> Option<PathBuf> {
    LayerCache::user_dir().map(|dir| dir.join(PIECES))
}

impl Default for StoreArgs {
    /// What they are if none is given.
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            profile: None,
            path_style: None,
            allow_http: false,
            request_timeout: BucketOptions::TIMEOUT.as_secs(),
            store_cache_size: 8 << 30,
            secrets: SecretArgs::default(),
        }
    }
}

impl StoreArgs {
    /// How stores are opened with these options.
    pub(crate) fn options(&self) -> stored::Options {
        stored::Options {
            bucket: BucketOptions {
                endpoint: self.endpoint.clone(),
                region: self.region.clone(),
                profile: self.profile.clone(),
                path_style: self.path_style,
                allow_http: self.allow_http,
                timeout: Duration::from_secs(self.request_timeout),
                cache_dir: piece_cache_dir().filter(|_| self.store_cache_size > 0),
                cache_limit: self.store_cache_size,
                ..BucketOptions::default()
            },
            keyring: self.secrets.keyring(),
            named: Vec::new(),
        }
    }

    /// The same for another store, which may lie elsewhere, and be opened by something else.
    pub(crate) fn elsewhere(
        &self,
        endpoint: Option<&String>,
        region: Option<&String>,
        profile: Option<&String>,
        secrets: Option<SecretArgs>,
    ) -> stored::Options {
        let or =
            |one: Option<&String>, other: &Option<String>| one.cloned().or_else(|| other.clone());
        let there = Self {
            endpoint: or(endpoint, &self.endpoint),
            region: or(region, &self.region),
            profile: or(profile, &self.profile),
            secrets: secrets.unwrap_or_else(|| self.secrets.clone()),
            ..self.clone()
        };
        there.options()
    }

    /// The same options for another process of ours.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![
            format!("--request-timeout={}", self.request_timeout).into(),
            format!("--store-cache-size={}", self.store_cache_size).into(),
        ];
        let texts =
            [("endpoint", &self.endpoint), ("region", &self.region), ("profile", &self.profile)];
        for (name, value) in texts {
            arguments.extend(value.iter().map(|value| format!("--{name}={value}").into()));
        }
        arguments.extend(self.path_style.map(|style| format!("--path-style={style}").into()));
        if self.allow_http {
            arguments.push("--allow-http".into());
        }
        arguments.extend(self.secrets.arguments());
        arguments
    }
}
