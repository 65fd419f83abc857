//! What the commands that look after a store share: who does the work, they or its running server, and how sizes are printed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::api_client::{ApiClient, ApiClientError};
use crate::app;
use crate::bundle::Progress;
use crate::config::{Config, Env as _, ProcessEnv};
use crate::files;
use crate::mirror::{Misnamed, Names};
use crate::oci::ImageName;
use crate::secret::Secret;
use crate::store::{Store, StoreError, is_store};

use super::{Settings, block_on, fail, fail_config};

/// Which store.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// Configuration file (TOML); also `CACHALOT_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Admin listener of a running server, such as localhost:5051; a server that runs on the data directory is found
    /// without
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "data"])]
    server: Option<String>,
    /// File with a token for the server's API; also `CACHALOT_TOKEN`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authority of the server's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// How a store is reached.
pub(super) enum Place {
    /// No server runs on it: it is in our hands, and used as the configuration says.
    Stopped(Store, Box<Config>),
    /// A server does, and is asked.
    Running(ApiClient),
}

/// No token is longer.
const TOKEN_BYTES_MAX: u64 = 4096;

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// Has `work` done where the store is: on the store itself, which is closed afterwards, or on its server. There must be one:
/// whoever looks for something in the wrong place is told so.
pub(super) fn with_store(args: &StoreArgs, work: impl AsyncFnOnce(&Place) -> ExitCode) -> ExitCode {
    with_store_or_new(args, false, work)
}

/// The same, where a store that isn't there yet may be made.
pub(super) fn with_store_or_new(
    args: &StoreArgs,
    may_make: bool,
    work: impl AsyncFnOnce(&Place) -> ExitCode,
) -> ExitCode {
    if let Some(server) = &args.server {
        return match args.client(server) {
            Ok(client) => block_on(work(&Place::Running(client))),
            Err(message) => fail(&message),
        };
    }
    let settings = Settings { config: args.config.clone(), data: args.data.clone(), ..Settings::default() };
    let config = match settings.load() {
        Ok(config) => config,
        Err(errors) => return fail_config(&errors),
    };
    if !may_make && !is_store(&config.storage.path) {
        let path = config.storage.path.display();
        return fail(&format!(
            "there is no store in {path}; name its folder with --data, or its configuration with --config"
        ));
    }
    block_on(async {
        match app::open_alone(&config).await {
            Ok(store) => {
                let place = Place::Stopped(store, Box::new(config));
                let code = work(&place).await;
                if let Place::Stopped(store, _) = place {
                    store.close().await;
                }
                code
            }
            Err(StoreError::Locked { contact: Some(server), .. }) => match args.client(&server) {
                Ok(client) => work(&Place::Running(client)).await,
                Err(message) => fail(&message),
            },
            Err(error) => fail(&error.to_string()),
        }
    })
}

/// A bar that looks as a template says.
pub(super) fn styled(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    // Templates are constants; should one be wrong, the bar looks plain.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A bar that shows how far long work has come, on terminals.
pub(super) fn bar() -> ProgressBar {
    let bar = styled("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows how far an export or import has come.
pub(super) fn show_bundle(bar: &ProgressBar, progress: &Progress) {
    // A stream's length is not known before its end.
    bar.set_length(progress.total_bytes.unwrap_or(progress.done_bytes));
    bar.set_position(progress.done_bytes);
}

/// Waits for work that can be interrupted by Ctrl-C or SIGTERM: then it is dropped, with what it had not finished, and this
/// is `None`.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => signals.recv().await,
            // Then the system ends the program, as it would have.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work => Some(done),
        _ = tokio::signal::ctrl_c() => None,
        _ = terminated => None,
    }
}

/// What a server says that did not do what it was asked for.
pub(super) fn refused(error: &ApiClientError) -> ExitCode {
    let advice = match error {
        ApiClientError::Refused { status, .. } if matches!(status.as_u16(), 401 | 403) => {
            "; give a token of one of admin.admins by --token-file or CACHALOT_TOKEN"
        }
        _ => "",
    };
    fail(&format!("{error}{advice}"))
}

/// A value of a query.
pub(super) fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A size as people read it.
pub(super) fn size(bytes: u64) -> String {
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

// === impl Place ===

impl Place {
    /// Images by the canonical names of their registries, which must be configured. A server sees to that itself.
    pub(super) fn canonical(&self, images: &[ImageName]) -> Result<Vec<ImageName>, String> {
        self.called(images, Names::canonical).into_iter().collect()
    }

    /// The same for what may be held although its registry is configured no longer, each for itself.
    pub(super) fn canonical_if_known(&self, images: &[ImageName]) -> Vec<Result<ImageName, String>> {
        self.called(images, Names::canonical_if_known)
    }

    fn called(
        &self,
        images: &[ImageName],
        by: fn(&Names, &ImageName) -> Result<ImageName, Misnamed>,
    ) -> Vec<Result<ImageName, String>> {
        match self {
            Self::Stopped(_, config) => {
                let names = app::names(config);
                images.iter().map(|image| by(&names, image).map_err(|error| error.to_string())).collect()
            }
            Self::Running(_) => images.iter().cloned().map(Ok).collect(),
        }
    }
}

// === impl StoreArgs ===

impl StoreArgs {
    fn client(&self, server: &str) -> Result<ApiClient, String> {
        let token = match &self.token_file {
            Some(path) => Some(files::read_text(path, TOKEN_BYTES_MAX).map_err(|error| error.to_string())?),
            None => ProcessEnv.get("CACHALOT_TOKEN"),
        };
        let token = token.as_deref().map(str::trim).filter(|token| !token.is_empty()).map(Secret::new);
        ApiClient::new(server, token, self.ca_file.as_deref()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 40), "3.0 TiB");
    }
}
