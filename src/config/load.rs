//! Brings the layers together: defaults, files, credentials, variables, flags.
//!
//! In: paths, credentials of the service manager, `CEPA_*` variables, flags. Out: checked settings and the origin of each value.
//! Called by: cli.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{ClientConfig, ConfigError, ControllerConfig, Key, NodeConfig, Settings};

/// Where the files of the roles are.
const ETC: &str = "/etc/cepa";
/// A variable this close to a valid one is a slip, not someone else's variable.
const SLIP: usize = 2;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file, and the line from 1.
    File(PathBuf, usize),
    /// A file of the service manager's credentials (systemd's `LoadCredential`).
    Credential(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Credential(file) => write!(f, "credential {}", file.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// Settings of one role, and where they came from.
#[derive(Clone, Debug)]
pub struct Loaded<S> {
    /// The checked settings.
    pub settings: S,
    /// The origin of every key that is not at its default.
    pub origins: BTreeMap<&'static str, Origin>,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
    main_file: PathBuf,
}

impl<S: Settings> Loaded<S> {
    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The value of a key that this command cannot do without.
    ///
    /// # Errors
    /// [`ConfigError::Missing`], with the three ways to set it.
    pub fn required<'a, T>(
        &self,
        key: &'static str,
        value: &'a Option<T>,
    ) -> Result<&'a T, ConfigError> {
        let plain = Key { name: key, ..Key::PLAIN };
        value.as_ref().ok_or_else(|| ConfigError::Missing {
            key,
            flag: format!("--{}", plain.flag()),
            variable: plain.variable(),
            file: self.main_file.clone(),
        })
    }
}

/// Collects the layers of one role.
#[derive(Clone, Debug)]
pub struct Loader {
    etc: PathBuf,
    file: Option<PathBuf>,
    credentials: Option<PathBuf>,
    variables: Vec<(String, String)>,
    flags: Vec<(String, Vec<String>)>,
}

impl Default for Loader {
    fn default() -> Self {
        Self {
            etc: PathBuf::from(ETC),
            file: None,
            credentials: None,
            variables: Vec::new(),
            flags: Vec::new(),
        }
    }
}

/// One value of one layer.
struct Given {
    key: &'static Key,
    value: toml::Value,
    origin: Origin,
}

impl Loader {
    /// Looks for `<role>.toml` and `<role>.toml.d/` in `folder` instead of `/etc/cepa`.
    #[must_use]
    pub fn etc(mut self, folder: impl Into<PathBuf>) -> Self {
        self.etc = folder.into();
        self
    }

    /// Reads `file` instead of the role's files; it must exist.
    #[must_use]
    pub fn file(mut self, file: Option<PathBuf>) -> Self {
        self.file = file;
        self
    }

    /// Takes secret keys that stand in `folder`, each in a file of the key's name: what systemd calls
    /// `$CREDENTIALS_DIRECTORY`. Files that are not there or empty set nothing.
    #[must_use]
    pub fn credentials(mut self, folder: Option<PathBuf>) -> Self {
        self.credentials = folder;
        self
    }

    /// Adds environment variables; those that do not start with `CEPA_` and empty ones are ignored.
    #[must_use]
    pub fn variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables.extend(
            variables
                .into_iter()
                .filter(|(name, value)| name.starts_with("CEPA_") && !value.is_empty()),
        );
        self
    }

    /// Adds a flag's values, as texts; the flag is named like its key.
    #[must_use]
    pub fn flag(mut self, key: &str, texts: Vec<String>) -> Self {
        self.flags.push((key.to_owned(), texts));
        self
    }

    /// Reads, checks and layers everything.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and the way out.
    pub fn load<S: Settings>(&self) -> Result<Loaded<S>, ConfigError> {
        let main_file = self
            .file
            .clone()
            .unwrap_or_else(|| self.etc.join(S::ROLE).with_added_extension("toml"));
        let files = self.files(&main_file)?;
        let mut given = Vec::new();
        for (file, text) in &files {
            given.extend(file_values::<S>(file, text)?);
        }
        given.extend(self.credential_values::<S>()?);
        given.extend(self.variable_values::<S>()?);
        given.extend(self.flag_values::<S>()?);

        let mut builder = config::Config::builder();
        let mut origins = BTreeMap::new();
        for Given { key, value, origin } in given {
            check_value::<S>(key, &value, &origin)?;
            builder = builder.set_override(key.name, layered(value))?;
            origins.insert(key.name, origin);
        }
        let settings: S = builder.build()?.try_deserialize()?;
        settings.check().map_err(|wrong| ConfigError::Value {
            origin: origins.get(wrong.key).cloned().unwrap_or(Origin::Default),
            key: wrong.key,
            why: wrong.why,
        })?;
        let files = files.into_iter().map(|(file, _)| file).collect();
        Ok(Loaded { settings, origins, files, main_file })
    }

    /// The files to read, in order, with their text.
    fn files(&self, main_file: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
        let mut paths = vec![main_file.to_owned()];
        if self.file.is_none() {
            let folder = main_file.with_added_extension("d");
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(error) => Err(error),
            };
            let entries = entries.map_err(|source| ConfigError::Read { file: folder, source })?;
            let mut parts: Vec<_> = entries
                .into_iter()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
                .collect();
            parts.sort();
            paths.extend(parts);
        }
        let mut files = Vec::new();
        for path in paths {
            match fs::read_to_string(&path) {
                Ok(text) => files.push((path, text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.file.is_none() => {}
                Err(source) => return Err(ConfigError::Read { file: path, source }),
            }
        }
        Ok(files)
    }

    fn credential_values<S: Settings>(&self) -> Result<Vec<Given>, ConfigError> {
        let mut given = Vec::new();
        let Some(folder) = &self.credentials else { return Ok(given) };
        for key in S::KEYS.iter().filter(|key| key.secret) {
            let file = folder.join(key.name);
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(ConfigError::Read { file, source }),
            };
            let text = text.trim();
            if !text.is_empty() {
                let value = key.value_of(&[text.to_owned()]);
                given.push(Given { key, value, origin: Origin::Credential(file) });
            }
        }
        Ok(given)
    }

    fn variable_values<S: Settings>(&self) -> Result<Vec<Given>, ConfigError> {
        let mut given = Vec::new();
        for (name, text) in &self.variables {
            let origin = Origin::Variable(name.clone());
            if let Some(key) = S::KEYS.iter().find(|key| key.variable() == *name) {
                given.push(Given { key, value: key.value_of(std::slice::from_ref(text)), origin });
                continue;
            }
            let known_elsewhere = [NodeConfig::KEYS, ClientConfig::KEYS, ControllerConfig::KEYS]
                .into_iter()
                .flatten()
                .any(|key| key.variable() == *name);
            let slip = S::KEYS
                .iter()
                .map(Key::variable)
                .find(|valid| strsim::damerau_levenshtein(valid, name) <= SLIP);
            if let (Some(valid), false) = (slip, known_elsewhere) {
                let hint = format!("did you mean {valid}?");
                return Err(ConfigError::UnknownKey { origin, key: name.clone(), hint });
            }
        }
        Ok(given)
    }

    fn flag_values<S: Settings>(&self) -> Result<Vec<Given>, ConfigError> {
        let mut given = Vec::new();
        for (name, texts) in &self.flags {
            let key = S::KEYS.iter().find(|key| key.name == name);
            let origin = Origin::Flag(name.replace('_', "-"));
            let Some(key) = key else {
                return Err(unknown::<S>(origin, name));
            };
            given.push(Given { key, value: key.value_of(texts), origin });
        }
        Ok(given)
    }
}

/// The keys of one file.
fn file_values<S: Settings>(file: &Path, text: &str) -> Result<Vec<Given>, ConfigError> {
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        file: file.to_owned(),
        line: error.span().map_or(1, |span| line_at(text, span.start)),
        message: error.message().to_owned(),
    };
    let places = toml::de::DeTable::parse(text).map_err(syntax)?.into_inner();
    let mut values: toml::Table = toml::from_str(text).map_err(syntax)?;
    // The parser keeps keys sorted; a reader expects the first wrong line first.
    let mut places: Vec<_> = places.keys().map(|key| (key.span().start, key.get_ref())).collect();
    places.sort();
    let mut given = Vec::new();
    for (place, name) in places {
        let origin = Origin::File(file.to_owned(), line_at(text, place));
        let Some(key) = S::KEYS.iter().find(|key| key.name == name) else {
            return Err(unknown::<S>(origin, name));
        };
        if let Some(value) = values.remove(key.name) {
            given.push(Given { key, value, origin });
        }
    }
    Ok(given)
}

/// The line of a byte, from 1.
fn line_at(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|byte| *byte == b'\n').count()
}

/// An unknown key, with the nearest valid one.
fn unknown<S: Settings>(origin: Origin, name: &str) -> ConfigError {
    let nearest = S::KEYS
        .iter()
        .filter(|key| !key.planned)
        .map(|key| (strsim::jaro_winkler(key.name, name), key.name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((likeness, key)) if likeness > 0.7 => format!("did you mean {key:?}?"),
        _ => {
            let keys: Vec<_> =
                S::KEYS.iter().filter(|key| !key.planned).map(|key| key.name).collect();
            format!("{} has {}", S::ROLE, keys.join(", "))
        }
    };
    ConfigError::UnknownKey { origin, key: name.to_owned(), hint }
}

/// Refuses a value of the wrong type, and keys this version does not act on.
fn check_value<S: Settings>(
    key: &'static Key,
    value: &toml::Value,
    origin: &Origin,
) -> Result<(), ConfigError> {
    let wrong = |why: String| ConfigError::Value { origin: origin.clone(), key: key.name, why };
    if key.planned {
        return Err(wrong(
            "expected nothing here, as this version has no such function".to_owned(),
        ));
    }
    let alone = toml::Table::from_iter([(key.name.to_owned(), value.clone())]);
    if let Err(error) = alone.try_into::<S>() {
        // The types of this program say what they expected and got.
        if error.message().starts_with("expected ") && !key.secret {
            return Err(wrong(error.message().to_owned()));
        }
        let shown = match value {
            _ if key.secret => "something else".to_owned(),
            toml::Value::String(text) if !matches!(origin, Origin::File(..)) => text.clone(),
            other => other.to_string(),
        };
        return Err(wrong(format!("expected {}, got {shown}", key.expects)));
    }
    Ok(())
}

/// The same value for the layering crate.
fn layered(value: toml::Value) -> config::Value {
    let kind: config::ValueKind = match value {
        toml::Value::Boolean(value) => value.into(),
        toml::Value::Integer(value) => value.into(),
        toml::Value::String(value) => value.into(),
        toml::Value::Array(values) => {
            values.into_iter().map(layered).collect::<Vec<config::Value>>().into()
        }
        other => other.to_string().into(),
    };
    config::Value::new(None, kind)
}

#[cfg(test)]
mod tests;
