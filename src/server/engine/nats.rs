//! A node's part in a cluster over NATS.

use super::EngineFiles;
use crate::{
    cluster::{
        Cluster, Inbox, Options,
        nats::{self, Joining, LogSettings, NatsSettings, Over},
    },
    config::{Config, LogStorage},
    model::NodeName,
    server::{Ended, StartError},
    state::Numbers,
    workers::Workers,
};

/// What runs beside the gateway: the log is folded on a thread of its own, so that no device and no backend waits for it.
pub(crate) struct Part {
    workers: Workers,
    joining: Joining,
}

impl Part {
    /// Makes this node's part; it begins with [`Part::run`].
    pub(crate) async fn make(
        config: &Config,
        files: EngineFiles,
        options: Options,
        numbers: &Numbers,
    ) -> Result<(Cluster, Inbox, Self), StartError> {
        let workers = Workers::start("cluster", 1).map_err(StartError::Workers)?;
        let EngineFiles { credentials, password, tls } = files;
        let settings = &config.cluster;
        let settings = NatsSettings {
            cluster: settings.name.clone(),
            urls: settings.urls.iter().map(ToString::to_string).collect(),
            credentials,
            user: settings.user.clone().zip(password.map(|password| password.expose().to_owned())),
            tls,
            requires_tls: settings.tls_ca.is_some(),
            log: LogSettings {
                replicas: settings.replicas,
                memory: settings.storage == LogStorage::Memory,
                bytes_max: settings.log_bytes.into(),
            },
            dead_after: settings.dead_after,
            gather: settings.gather,
            window: settings.window as usize,
            max_frame: config.device.max_frame as usize,
            first_floor: numbers.first_sequence(),
            on_sequence: Box::new({
                let used = numbers.clone();
                move |sequence| used.note_sequence(sequence)
            }),
        };
        let name = NodeName::new(&config.node.name);
        let joined = nats::join(settings, name, options, workers.first().clone()).await;
        let (cluster, inbox, joining) = joined.map_err(StartError::Cluster)?;
        Ok((cluster, inbox, Self { workers, joining }))
    }

    /// Takes part until the node has left; else why it ends by itself.
    pub(crate) async fn run(self) -> Option<Ended> {
        let Self { workers, joining } = self;
        let over = workers.first().spawn(joining.run()).await;
        let _ = tokio::task::spawn_blocking(move || drop(workers)).await;
        match over {
            Ok(Over::Superseded) => Some(Ended::Superseded),
            Ok(Over::Refused(why)) => Some(Ended::Refused(why)),
            Ok(Over::Left) => None,
            // A panic, which the hook has told: presence would stay as it is for ever.
            Err(_) => Some(Ended::Broken),
        }
    }
}
