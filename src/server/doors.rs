//! Who gets in: the files of certificates and secrets that a configuration names, read, and watched from then on.

use super::{StartError, engine::EngineFiles};
use crate::{
    config::{Config, ControlSecret, Secret},
    control::{Door, Secrets},
    files::{FileWatch, Seen},
    state::{self, StateError},
    tls::{ServerTls, TlsFiles},
};

/// What was read of the files that a configuration names for its listeners and callers; watched since then.
pub(super) struct Files {
    pub(super) tls: ListenersTls,
    /// None: none is configured.
    pub(super) secrets: Option<(Secrets, Secret)>,
    pub(super) watch: FileWatch,
    /// None: the node is alone.
    pub(super) engine: Option<EngineFiles>,
}

impl Files {
    pub(super) fn read(config: &Config) -> Result<Self, StartError> {
        let mut watch = FileWatch::default();
        let engine = EngineFiles::read(&config.cluster)?;
        let tls = ListenersTls::load(config, &mut watch)?;
        let configured = &config.control.secrets;
        let secrets = (!configured.is_empty()).then(|| load(configured, &mut watch)).transpose()?;
        Ok(Self { tls, secrets, watch, engine })
    }
}

/// Who may call the control plane, and the secret that the library's user gets: one of `configured`, else one that is made
/// up.
pub(super) fn door(
    config: &Config,
    tls: Option<ServerTls>,
    configured: Option<(Secrets, Secret)>,
    watch: &mut FileWatch,
) -> Result<(Door, Secret), StartError> {
    let (secrets, own) = match configured {
        Some(configured) => configured,
        None => {
            let data_dir = config.data_dir();
            let made_up = state::control_secret(&data_dir, true)?.ok_or(StateError::NoSecret { path: data_dir })?;
            load(&[ControlSecret { name: "made-up".to_owned(), ..made_up.into() }], watch)?
        }
    };
    Ok((Door::new(secrets, tls, &config.control), own))
}

/// The secrets of a configuration, and the text of the first that has all scopes.
fn load(configured: &[ControlSecret], watch: &mut FileWatch) -> Result<(Secrets, Secret), StartError> {
    Secrets::load(configured, watch).map_err(|error| StartError::File { key: "control.secrets".to_owned(), error })
}

/// What the listeners show, each where it has TLS.
pub(super) struct ListenersTls {
    pub(super) device: Option<ServerTls>,
    pub(super) control: Option<ServerTls>,
    pub(super) http: Option<ServerTls>,
}

impl ListenersTls {
    fn load(config: &Config, watch: &mut FileWatch) -> Result<Self, StartError> {
        let Config { device, control, http, .. } = config;
        let files = TlsFiles::of(device.tls_cert.as_ref(), device.tls_key.as_ref(), None);
        let device = listener_tls("device", files.filter(|_| device.tls_listen.is_some()), &[], watch)?;
        let files = TlsFiles::of(control.tls_cert.as_ref(), control.tls_key.as_ref(), control.tls_client_ca.as_ref());
        let control = listener_tls("control", files, &[b"h2"], watch)?;
        let files = TlsFiles::of(http.tls_cert.as_ref(), http.tls_key.as_ref(), None);
        let http = listener_tls("http", files, &[b"http/1.1"], watch)?;
        Ok(Self { device, control, http })
    }
}

/// What a listener shows, read again when its files change. `section` is that of their keys.
fn listener_tls(
    section: &str,
    files: Option<TlsFiles>,
    protocols: &'static [&'static [u8]],
    watch: &mut FileWatch,
) -> Result<Option<ServerTls>, StartError> {
    let Some(files) = files else { return Ok(None) };
    let seen = Seen::now(files.paths());
    let tls = ServerTls::load(files.clone(), protocols).map_err(|error| {
        let named = [("tls_key", Some(&files.key)), ("tls_client_ca", files.client_ca.as_ref())];
        let name = named.iter().find(|(_, file)| *file == Some(&error.path)).map_or("tls_cert", |(name, _)| name);
        StartError::File { key: format!("{section}.{name}"), error }
    })?;
    let again = tls.clone();
    watch.add(seen, move || again.reload());
    Ok(Some(tls))
}
