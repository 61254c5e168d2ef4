//! Who may call the control plane: secrets and names of certificates, each with its scopes.

use toml::Value;

use super::{Given, Kind, LIST_MAX, Name, PathOf, Written};
use crate::config::{
    ControlSecret, NamedScopes, Scopes, Secret, SecretSource,
    secret::{SECRET_ALLOWED, position_name},
};

/// The fields of a table that has no others than these; None where it isn't one.
fn fields<'a, const N: usize>(value: &'a Value, names: [&str; N]) -> Option<[Option<&'a Value>; N]> {
    let table = value.as_table()?;
    table.keys().all(|key| names.contains(&key.as_str())).then(|| names.map(|name| table.get(name)))
}

/// The scopes that a list names; all where it is missing.
fn scopes(value: Option<&Value>) -> Option<Scopes> {
    let Some(value) = value else { return Some(Scopes::ALL) };
    let scopes = value.as_array()?;
    if scopes.is_empty() {
        return None;
    }
    scopes.iter().try_fold(Scopes::NONE, |all, scope| Some(all.with(Scopes::named(scope.as_str()?)?)))
}

const SCOPES_ALLOWED: &str = "scopes out of \"push\", \"presence\", \"admin\" (all where not said)";

/// Secrets, which are never shown.
pub(in crate::config) struct Secrets;

impl Secrets {
    fn one(value: &Value, place: usize) -> Option<ControlSecret> {
        if let Some(text) = value.as_str() {
            return Self::text(text, place);
        }
        let [name, secret, file, named] = fields(value, ["name", "secret", "file", "scopes"])?;
        let name = match name {
            Some(name) => Name.read(Given::Typed(name))?,
            None => position_name(place),
        };
        let source = match (secret, file) {
            (Some(secret), None) => SecretSource::Text(Secret::new(secret.as_str()?).ok()?),
            (None, Some(file)) => SecretSource::File(PathOf::path(file.as_str()?)?),
            _ => return None,
        };
        Some(ControlSecret { name, source, scopes: scopes(named)? })
    }

    fn text(text: &str, place: usize) -> Option<ControlSecret> {
        Secret::new(text).ok().map(|secret| ControlSecret { name: position_name(place), ..secret.into() })
    }
}

impl Kind for Secrets {
    type Value = Vec<ControlSecret>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        let secrets: Option<Vec<_>> = match given {
            Given::Typed(value) => {
                value.as_array()?.iter().enumerate().map(|(place, value)| Self::one(value, place)).collect()
            }
            Given::Text(_) => {
                given.list()?.into_iter().enumerate().map(|(place, text)| Self::text(text, place)).collect()
            }
        };
        let secrets = secrets.filter(|secrets| secrets.len() <= LIST_MAX)?;
        let twice = |(place, secret): (usize, &ControlSecret)| {
            secrets[..place].iter().any(|other: &ControlSecret| other.name == secret.name)
        };
        (!secrets.iter().enumerate().any(twice)).then_some(secrets)
    }

    fn write(&self, value: &Self::Value) -> Written {
        // As it would have to stand in a file: what `validate` reads again. Printing leaves it out.
        let one = |secret: &ControlSecret| {
            let mut table = toml::Table::new();
            table.insert("name".to_owned(), Value::String(secret.name.clone()));
            match &secret.source {
                SecretSource::Text(text) => table.insert("secret".to_owned(), Value::String(text.expose().to_owned())),
                SecretSource::File(file) => {
                    table.insert("file".to_owned(), Value::String(file.to_string_lossy().into_owned()))
                }
            };
            table.insert("scopes".to_owned(), scopes_value(secret.scopes));
            Value::Table(table)
        };
        Written::Secret { value: Value::Array(value.iter().map(one).collect()), set: value.len() }
    }

    fn allowed(&self) -> String {
        format!(
            "a list of up to {LIST_MAX}, each {SECRET_ALLOWED}, or {{ name, secret or file, scopes }} with a name of its \
             own and {SCOPES_ALLOWED}"
        )
    }

    fn is_secret(&self, _given: Given<'_>) -> bool {
        true
    }
}

fn scopes_value(scopes: Scopes) -> Value {
    Value::Array(scopes.names().map(|name| Value::String(name.to_owned())).collect())
}

/// Names of client certificates, each with what it may do.
pub(in crate::config) struct ClientNames;

impl ClientNames {
    fn text(text: &str) -> Option<NamedScopes> {
        let fits = (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        fits.then(|| NamedScopes { name: text.to_owned(), scopes: Scopes::ALL })
    }

    fn one(value: &Value) -> Option<NamedScopes> {
        if let Some(text) = value.as_str() {
            return Self::text(text);
        }
        let [name, named] = fields(value, ["name", "scopes"])?;
        Some(NamedScopes { scopes: scopes(named)?, ..Self::text(name?.as_str()?)? })
    }
}

impl Kind for ClientNames {
    type Value = Vec<NamedScopes>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        let names: Option<Vec<_>> = match given {
            Given::Typed(value) => value.as_array()?.iter().map(Self::one).collect(),
            Given::Text(_) => given.list()?.into_iter().map(Self::text).collect(),
        };
        let names = names.filter(|names| names.len() <= LIST_MAX)?;
        let twice = |(place, name): (usize, &NamedScopes)| {
            names[..place].iter().any(|other: &NamedScopes| other.name.eq_ignore_ascii_case(&name.name))
        };
        (!names.iter().enumerate().any(twice)).then_some(names)
    }

    fn write(&self, value: &Self::Value) -> Written {
        let one = |NamedScopes { name, scopes }: &NamedScopes| {
            let name = ("name".to_owned(), Value::String(name.clone()));
            Value::Table([name, ("scopes".to_owned(), scopes_value(*scopes))].into_iter().collect())
        };
        Written::Value(Value::Array(value.iter().map(one).collect()))
    }

    fn allowed(&self) -> String {
        format!("a list of up to {LIST_MAX} different {{ name, scopes }}, with {SCOPES_ALLOWED}")
    }
}
