//! Where a device connects: an address, or what a gateway's HTTP port answers at this time.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;
use tonic::codegen::http::Uri;

use super::{DeviceTls, LoginError};
use crate::tls;

/// The longest answer to a look-up, in bytes: an address is far shorter.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// What a look-up answers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    host: String,
    error: String,
}

/// The `HOST:PORT` that `address` stands for at this time. `tls`: where it is asked for the port of TLS, and by which
/// certificates a look-up by `https` is trusted.
pub(super) async fn find(address: &str, tls: Option<&DeviceTls>) -> Result<String, LoginError> {
    let found = match look_up_url(address, tls.is_some())? {
        None => address.to_owned(),
        Some(url) => look_up(url, tls).await?,
    };
    if is_address(&found) { Ok(found) } else { Err(LoginError::Address(found)) }
}

/// The host of an address: what the gateway's certificate must be for.
pub(super) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// None: `address` isn't to be looked up.
fn look_up_url(address: &str, tls: bool) -> Result<Option<Uri>, LoginError> {
    let Some((scheme, authority)) = address.split_once("://") else { return Ok(None) };
    let wrong = || LoginError::Address(address.to_owned());
    let (scheme, authority) = (scheme.to_ascii_lowercase(), authority.strip_suffix('/').unwrap_or(authority));
    if !matches!(&*scheme, "http" | "https") || authority.contains(['/', '?', '@']) {
        return Err(wrong());
    }
    let query = if tls { "?transport=tls" } else { "" };
    format!("{scheme}://{authority}/plex/v1/host{query}").parse().map(Some).map_err(|_| wrong())
}

async fn look_up(url: Uri, tls: Option<&DeviceTls>) -> Result<String, LoginError> {
    let config = match url.scheme_str() {
        Some("https") => tls::client_config(tls.and_then(|tls| tls.ca.as_deref())).map_err(LoginError::File)?,
        _ => tls::trusting_nobody(),
    };
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let response = client.get(url).await.map_err(|error| LoginError::NoHost(innermost(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| LoginError::NoHost(error.to_string()))?.to_bytes();
    let answer: Answer = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() && is_address(&answer.host) {
        return Ok(answer.host);
    }
    let why = if answer.error.is_empty() { format!("it answered {status}") } else { answer.error };
    Err(LoginError::NoHost(why))
}

/// The cause of all: "Connection refused" tells more than "client error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_or_a_url_to_ask() {
        for (address, tls, url) in [
            ("127.0.0.1:9578", false, None),
            ("http://plex.example:9579", false, Some("http://plex.example:9579/plex/v1/host")),
            ("HTTPS://[::1]:9579/", true, Some("https://[::1]:9579/plex/v1/host?transport=tls")),
        ] {
            let found = look_up_url(address, tls).unwrap().map(|url| url.to_string());
            assert_eq!(found.as_deref(), url, "{address}");
        }
        for wrong in ["ftp://a:1", "http://a:1/x", "http://u@a:1", "http://", "http://a b:1"] {
            assert!(matches!(look_up_url(wrong, false), Err(LoginError::Address(_))), "{wrong}");
        }
        assert!(["a:1", "[::1]:1", "1.2.3.4:65535"].into_iter().all(is_address));
        assert!(!["", "a", ":1", "a:", "a:65536", "a:b"].into_iter().any(is_address));
        assert_eq!(["a:1", "[::1]:2", "1.2.3.4:5"].map(host_of), ["a", "::1", "1.2.3.4"]);
    }
}
