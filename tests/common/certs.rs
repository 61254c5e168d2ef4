//! Certificates made for one test, as PEM files in a folder of their own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;

/// Somebody who signs certificates.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in files.
#[derive(Debug, Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Whether a certificate's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    Good,
    Over,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = named("the test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let authority = Self { folder: tempfile::tempdir().expect("a folder"), issuer: Issuer::new(params, key), pem };
        fs::write(authority.ca(), &authority.pem).unwrap();
        authority
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file of its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A server's, for loopback.
    pub fn server(&self, file: &str) -> Pair {
        self.server_at(file, &["localhost", "127.0.0.1"])
    }

    /// A server's, for these names and IP addresses.
    pub fn server_at(&self, file: &str, names: &[&str]) -> Pair {
        let params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        self.sign(file, params, ExtendedKeyUsagePurpose::ServerAuth, Time::Good)
    }

    /// A client's, with these DNS names and this CN.
    pub fn client(&self, file: &str, dns: &[&str], common: &str, time: Time) -> Pair {
        let mut params = CertificateParams::new(dns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = named(common);
        self.sign(file, params, ExtendedKeyUsagePurpose::ClientAuth, time)
    }

    /// Signs; writes `FILE.pem` and `FILE.key`. What stood there before is replaced.
    fn sign(&self, file: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose, time: Time) -> Pair {
        params.extended_key_usages = vec![usage];
        if time == Time::Over {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: self.folder.path().join(format!("{file}.pem")),
            key: self.folder.path().join(format!("{file}.key")),
        };
        fs::write(&pair.cert, cert.pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
