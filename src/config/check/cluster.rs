//! What the keys of a cluster mean together.

use super::{check_pair, clash};
use crate::config::{ClusterConfig, Config, ConfigError, NatsUrl, kind::spelled};

pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let cluster = &config.cluster;
    check_pair("cluster", cluster.tls_cert.as_ref(), cluster.tls_key.as_ref())?;
    check_user(cluster)?;
    if cluster.gather >= cluster.heartbeat {
        return clash(format!(
            "cluster.gather = \"{}\": must be below cluster.heartbeat = \"{}\"",
            spelled(cluster.gather),
            spelled(cluster.heartbeat)
        ));
    }
    let Some(first) = cluster.urls.first() else { return Ok(()) };
    if cfg!(not(feature = "nats")) {
        return clash(format!(
            "cluster.urls = [\"{first}\"]: this build has no nats; build it with the feature \"nats\", or leave it empty"
        ));
    }
    if let Some((url, missing)) = exposed(cluster).filter(|_| !cluster.insecure) {
        return clash(format!(
            "cluster.urls = [\"{url}\"]: leaves loopback (127.0.0.0/8, ::1, localhost) without {missing}, or cluster.insecure = true"
        ));
    }
    if config.control.secrets.is_empty() {
        return clash(format!(
            "control.secrets: must be set, since cluster.urls = [\"{first}\"] makes it one of several nodes, which take the same ones"
        ));
    }
    Ok(())
}

/// Who the node is to the servers: one way, and all of it.
fn check_user(cluster: &ClusterConfig) -> Result<(), ConfigError> {
    match (&cluster.user, &cluster.password_file) {
        (Some(user), None) => clash(format!("cluster.password_file: must be set, since cluster.user = {user:?} is")),
        (None, Some(file)) => clash(format!(
            "cluster.user: must be set, since cluster.password_file = {:?} is",
            file.display().to_string()
        )),
        (Some(user), Some(_)) if cluster.credentials.is_some() => {
            clash(format!("cluster.user = {user:?}: can't be set beside cluster.credentials, which name the user"))
        }
        _ => Ok(()),
    }
}

/// The first server that is reached over a network without TLS, or without showing who the node is, and what it lacks.
fn exposed(cluster: &ClusterConfig) -> Option<(&NatsUrl, &'static str)> {
    let known = cluster.credentials.is_some() || cluster.user.is_some() || cluster.tls_cert.is_some();
    cluster.urls.iter().filter(|url| !url.is_loopback()).find_map(|url| {
        if !url.is_tls() && cluster.tls_ca.is_none() {
            Some((url, "TLS: it needs \"tls://\" or cluster.tls_ca"))
        } else if !known {
            Some((url, "credentials: it needs cluster.credentials, cluster.user and cluster.password_file, or cluster.tls_cert"))
        } else {
            None
        }
    })
}

/// Set, and yet to be known of.
pub(super) fn warning(cluster: &ClusterConfig) -> Option<String> {
    let (url, missing) = exposed(cluster)?;
    let missing = missing.split(':').next().unwrap_or_default();
    Some(format!(
        "cluster.insecure = true: cluster.urls = [\"{url}\"] leaves loopback without {missing}, whoever reaches it can push to every device"
    ))
}
