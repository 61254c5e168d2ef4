//! In place of a cluster, in a build without one: `cluster.urls` is refused before this is reached.

use super::EngineFiles;
use crate::{
    cluster::{Cluster, Inbox, Options},
    config::Config,
    server::{Ended, StartError},
    state::Numbers,
};

/// Never made.
pub(crate) enum Part {}

impl Part {
    pub(crate) async fn make(
        _: &Config,
        _: EngineFiles,
        _: Options,
        _: &Numbers,
    ) -> Result<(Cluster, Inbox, Self), StartError> {
        Err(StartError::Cluster("this build has no `nats`".to_owned()))
    }

    pub(crate) async fn run(self) -> Option<Ended> {
        match self {}
    }
}
