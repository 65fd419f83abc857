//! Reload: the configuration read again and put into force piece by piece, or not at all.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Actor};
use crate::config::{Config, ConfigErrors};
use crate::files::Stamp;
use crate::server::api::{Reload, Reloaded};
use crate::{tasks, telemetry};

use super::Live;

/// Where the configuration comes from, to be asked again. Cheap to clone.
#[derive(Clone)]
pub struct ConfigSource {
    /// Reads it, all layers of it.
    pub load: Arc<dyn Fn() -> Result<Config, ConfigErrors> + Send + Sync>,
    /// Its file, if it has one.
    pub file: Option<PathBuf>,
    /// Whether it is read again by itself when a file of it changes.
    pub watch: bool,
}

/// Puts a changed configuration into force.
#[derive(Debug)]
pub(super) struct Reloader {
    source: ConfigSource,
    live: Live,
    pool: tasks::Pool,
    /// What is in force. Its lock is held for as long as a reload takes, so that there is one at a time.
    current: tokio::sync::Mutex<Config>,
    /// The files that the last configuration read or tried named.
    named: Mutex<Vec<PathBuf>>,
    /// What all files were like when this was made.
    first: Stamps,
}

type Stamps = Vec<(PathBuf, Option<Stamp>)>;

/// How often files are looked at. Names of mounted files change under them, which no watch tells of reliably.
const LOOK_EVERY: Duration = Duration::from_secs(1);

// === impl Reloader ===

impl Reloader {
    /// Reloads when the API or a changed file wants it, until the server drains.
    pub(super) fn start(
        source: ConfigSource,
        config: Config,
        live: Live,
        pool: tasks::Pool,
        draining: CancellationToken,
    ) -> Arc<Self> {
        let reloader = Arc::new(Self::new(source, config, live, pool));
        reloader.live.api.set_reload(Arc::clone(&reloader) as Arc<dyn Reload>);
        tasks::spawn("watch", draining.run_until_cancelled_owned(Arc::clone(&reloader).watch()));
        reloader
    }

    fn new(source: ConfigSource, config: Config, live: Live, pool: tasks::Pool) -> Self {
        let named = config.files();
        let first = stamps(&source, named.clone());
        let named = Mutex::new(named);
        Self { first, source, live, pool, current: tokio::sync::Mutex::new(config), named }
    }

    async fn load(&self, by: &Actor) -> Result<Reloaded, String> {
        let mut current = self.current.lock().await;
        let load = Arc::clone(&self.source.load);
        let loaded = self.pool.run(move || load()).await;
        let wanted = loaded.map_err(|errors| errors.to_string())?;
        *self.named.lock() = wanted.files();
        let certificates = {
            let live = self.live.clone();
            self.pool.run(move || live.read_certificates()).await.map_err(|error| error.to_string())?
        };
        // From here on nothing fails.
        let needs_restart = fixed(&current, &wanted);
        let mut changed = changeable(&current, &wanted);
        if certificates.put_into_force() {
            changed.push("certificates".to_owned());
        }
        let next = keep_fixed(&current, wanted);
        if changed.iter().any(|name| name == "log.level") {
            // Without a log of ours there is nothing to set.
            let _ = telemetry::set_level(&next.log.level);
        }
        if changed.iter().any(|name| name != "log.level" && name != "certificates") {
            self.live.put_into_force(&current, &next).await;
        }
        audit::changed("reload", by, "configuration", &"-", &changed.join(", "));
        *current = next;
        Ok(Reloaded { changed, needs_restart })
    }

    async fn reload_and_tell(&self, by: Actor) -> Result<Reloaded, String> {
        let result = self.load(&by).await;
        match &result {
            Ok(Reloaded { changed, needs_restart }) => {
                let changed = if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") };
                tracing::info!(changed, "reloaded the configuration; changed: {changed}");
                if !needs_restart.is_empty() {
                    let settings = needs_restart.join(", ");
                    tracing::warn!(settings, "these settings have changed in the file and need a restart: {settings}");
                }
            }
            Err(reason) => {
                audit::changed("reload refused", &by, "configuration", &"-", &"-");
                tracing::error!("the configuration was not reloaded, and nothing has changed: {reason}");
            }
        }
        result
    }

    /// Reloads for ever when a file changes that the configuration is or names, if it is to be watched.
    async fn watch(self: Arc<Self>) {
        if !self.source.watch {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let look = || {
            let this = Arc::clone(&self);
            self.pool.run(move || stamps(&this.source, this.named.lock().clone()))
        };
        let (mut known, mut pending) = (self.first.clone(), None);
        loop {
            ticks.tick().await;
            let seen = look().await;
            if seen == known {
                pending = None;
            } else if pending.as_ref() == Some(&seen) {
                // It has been so for a while: whoever writes is done.
                let _ = self.reload_and_tell(Actor::local("file")).await;
                // As it was before: what changed meanwhile is seen the next time.
                known = seen;
                pending = None;
            } else {
                pending = Some(seen);
            }
        }
    }
}

impl Reload for Reloader {
    fn reload(&self, by: Actor) -> BoxFuture<'_, Result<Reloaded, String>> {
        self.reload_and_tell(by).boxed()
    }
}

fn stamps(source: &ConfigSource, named: Vec<PathBuf>) -> Stamps {
    source.file.iter().cloned().chain(named).map(|path| (path.clone(), Stamp::of(&path))).collect()
}

/// What has changed of that which is in force until the process ends.
fn fixed(old: &Config, new: &Config) -> Vec<String> {
    let differs = [
        ("offline", old.offline != new.offline),
        ("server.listen", old.server.listen != new.server.listen),
        ("server.tls", old.server.tls != new.server.tls),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("admin.tls", old.admin.tls != new.admin.tls),
        ("storage.path", old.storage.path != new.storage.path),
        ("fill", old.fill != new.fill),
        ("log.format", old.log.format != new.log.format),
    ];
    names(&differs)
}

/// What has changed of that which can change.
fn changeable(old: &Config, new: &Config) -> Vec<String> {
    let (server, next) = (&old.server, &new.server);
    let differs = [
        ("server.default_upstream", server.default_upstream != next.default_upstream),
        ("server.hosts", server.hosts != next.hosts),
        ("server.client_header_timeout", server.client_header_timeout != next.client_header_timeout),
        ("server.max_connections", server.max_connections != next.max_connections),
        ("server.max_connections_per_address", server.max_connections_per_address != next.max_connections_per_address),
        ("server.max_misses", server.max_misses != next.max_misses),
        ("server.trusted_proxies", server.trusted_proxies != next.trusted_proxies),
        ("admin", old.admin.users != new.admin.users || old.admin.admins != new.admin.admins),
        ("access", old.access != new.access),
        ("storage.capacity", old.storage.capacity != new.storage.capacity),
        ("storage.min_free", old.storage.min_free != new.storage.min_free),
        ("tags", old.tags != new.tags),
        ("warm", old.warm != new.warm),
        (
            "upstreams",
            (&old.upstreams, &old.docker_config, &old.proxies) != (&new.upstreams, &new.docker_config, &new.proxies),
        ),
        ("log.level", old.log.level != new.log.level),
    ];
    names(&differs)
}

fn names(differs: &[(&str, bool)]) -> Vec<String> {
    differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()).collect()
}

/// The new configuration, but for what can't change.
fn keep_fixed(old: &Config, mut new: Config) -> Config {
    new.offline = old.offline;
    new.server.listen.clone_from(&old.server.listen);
    new.server.tls.clone_from(&old.server.tls);
    new.admin.listen.clone_from(&old.admin.listen);
    new.admin.tls.clone_from(&old.admin.tls);
    new.storage.path.clone_from(&old.storage.path);
    new.fill = old.fill.clone();
    new.log.format = old.log.format;
    new
}

impl fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSource").field("file", &self.file).finish_non_exhaustive()
    }
}
