//! Keys that are made in the test, and tokens signed with them.

use std::{
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, crypto, encode, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

/// A key that signs.
pub struct Signing {
    pub algorithms: &'static [Algorithm],
    encoding: EncodingKey,
    /// What a file of `auth.keys` holds of it.
    pub file: Vec<u8>,
    pub private_pem: Option<String>,
    /// The public key's bare bytes.
    raw: Vec<u8>,
}

const SECRET: &[u8] = b"a secret of forty bytes, not one fewer!!";

const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

impl Signing {
    pub fn hmac(secret: &[u8]) -> Self {
        let encoding = EncodingKey::from_secret(secret);
        Self { algorithms: HMAC, encoding, file: [secret, b"\n"].concat(), private_pem: None, raw: Vec::new() }
    }

    fn pair(algorithms: &'static [Algorithm], pair: &KeyPair) -> Self {
        let pem = pair.serialize_pem();
        let encoding = match algorithms[0] {
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            _ => EncodingKey::from_ec_pem(pem.as_bytes()),
        };
        let encoding = encoding.expect("the pair's own PEM");
        Self {
            algorithms,
            encoding,
            file: pair.public_key_pem().into_bytes(),
            private_pem: Some(pem),
            raw: pair.public_key_raw().to_vec(),
        }
    }

    pub fn rsa() -> Self {
        Self::pair(RSA, &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap())
    }

    pub fn p256() -> Self {
        Self::pair(&[Algorithm::ES256], &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    pub fn p384() -> Self {
        Self::pair(&[Algorithm::ES384], &KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap())
    }

    pub fn ed25519() -> Self {
        Self::pair(&[Algorithm::EdDSA], &KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    /// A token with the first of its algorithms, and no `kid`.
    pub fn token(&self, claims: &Value) -> String {
        self.token_by(self.algorithms[0], None, claims)
    }

    pub fn token_of(&self, kid: &str, claims: &Value) -> String {
        self.token_by(self.algorithms[0], Some(kid), claims)
    }

    pub fn token_by(&self, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
        encode(&header, claims, &self.encoding).expect("a token can be signed")
    }

    /// A token of these two texts, whatever they are.
    pub fn raw_token(&self, algorithm: Algorithm, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        let signature = crypto::sign(message.as_bytes(), &self.encoding, algorithm).expect("a text can be signed");
        format!("{message}.{signature}")
    }

    /// Its public part as a JWK, without `alg`.
    pub fn jwk(&self, kid: &str) -> Value {
        if self.algorithms[0] == Algorithm::EdDSA {
            return json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(&self.raw), "kid": kid });
        }
        let jwk = Jwk::from_encoding_key(&self.encoding, self.algorithms[0]).expect("it has a public part");
        let mut jwk = serde_json::to_value(jwk).expect("a JWK is JSON");
        jwk.as_object_mut().expect("an object").remove("alg");
        jwk["kid"] = json!(kid);
        jwk
    }
}

/// One of each kind, made once.
pub static HMAC_KEY: LazyLock<Signing> = LazyLock::new(|| Signing::hmac(SECRET));
pub static RSA_KEY: LazyLock<Signing> = LazyLock::new(Signing::rsa);
pub static P256_KEY: LazyLock<Signing> = LazyLock::new(Signing::p256);
pub static P384_KEY: LazyLock<Signing> = LazyLock::new(Signing::p384);
pub static ED_KEY: LazyLock<Signing> = LazyLock::new(Signing::ed25519);

pub fn key_set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The least that a token has to say.
pub fn alice() -> Value {
    json!({ "sub": "alice", "exp": now() + 3600 })
}

pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digits = |group: &[u8]| {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let digit = move |place: usize| char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]);
        (0..=group.len()).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(digits).collect()
}
