//! The flags of a role, made from the list of its keys.
//!
//! In: [`Settings::KEYS`] and arguments. Out: loaded settings.
//! Called by: controller, node, client.

use std::{marker::PhantomData, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValuesParser};

use crate::config::{ConfigError, Key, Kind, Loaded, Loader, Settings};

/// What was given on the command line for the role `S`; use it with `#[command(flatten)]`.
#[derive(Clone, Debug)]
pub(crate) struct SettingsFlags<S> {
    config: Option<PathBuf>,
    given: Vec<(&'static str, Vec<String>)>,
    role: PhantomData<S>,
}

impl<S: Settings> SettingsFlags<S> {
    /// Layers defaults, files, variables and these flags.
    pub(crate) fn load(&self) -> Result<Loaded<S>, ConfigError> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let loader = Loader::default()
            .file(self.config.clone())
            .credentials(credentials)
            .variables(variables);
        self.given
            .iter()
            .fold(loader, |loader, (key, texts)| loader.flag(key, texts.clone()))
            .load()
    }
}

impl<S> SettingsFlags<S> {
    /// The text of one flag, where the settings as a whole cannot be read.
    pub(crate) fn given(&self, name: &str) -> Option<String> {
        let (_, texts) = self.given.iter().find(|(key, _)| *key == name)?;
        texts.last().cloned()
    }
}

const CONFIG: &str = "config";

/// The flag of one key.
fn flag(key: &'static Key, default: Option<String>) -> Arg {
    let mut help = key.help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    if let Some(default) = default {
        help = format!("{} [default: {default}]", help.trim_end_matches('.'));
    }
    // clap keeps names for the life of the process, and they are made once.
    let name: &'static str = Box::leak(key.flag().into_boxed_str());
    let arg = Arg::new(key.name)
        .long(name)
        .help(help.trim_end_matches('.').to_owned())
        .global(key.global)
        .hide(key.planned);
    match key.kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(PossibleValuesParser::new(["true", "false"]))
            .hide_possible_values(true)
            .value_name("true|false"),
        Kind::Number | Kind::Text => arg.value_name(key.value_name),
        Kind::List => arg.value_name(key.value_name).action(ArgAction::Append),
    }
}

impl<S: Settings> clap::Args for SettingsFlags<S> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let defaults = serde_json::to_value(S::default()).unwrap_or_default();
        let shown = |key: &Key| match &defaults[key.name] {
            serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let file: &'static str =
            Box::leak(format!("Read this file instead of /etc/cepa/{}.toml", S::ROLE).into());
        command
            .arg(
                Arg::new(CONFIG)
                    .long(CONFIG)
                    .env("CEPA_CONFIG")
                    .hide_env(true)
                    .value_name("FILE")
                    .help(file)
                    .global(true)
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .args(S::KEYS.iter().map(|key| flag(key, shown(key))))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<S: Settings> clap::FromArgMatches for SettingsFlags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = S::KEYS
            .iter()
            .filter_map(|key| {
                let texts = matches.get_many::<String>(key.name)?;
                Some((key.name, texts.cloned().collect()))
            })
            .collect();
        Ok(Self { config: matches.get_one(CONFIG).cloned(), given, role: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{ClientConfig, NodeConfig, Origin};

    #[derive(Parser)]
    struct Line<S: Settings> {
        #[command(flatten)]
        settings: SettingsFlags<S>,
    }

    fn given<S: Settings>(words: &[&str]) -> Vec<(&'static str, Vec<String>)> {
        let words = ["x"].iter().chain(words);
        Line::<S>::try_parse_from(words).map(|line| line.settings.given).unwrap()
    }

    #[test]
    fn flags_are_the_keys() {
        let flags = given::<ClientConfig>(&["--hops", "4", "--lab", "--route", "a,b", "--route=c"]);
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            flags,
            [("hops", texts(&["4"])), ("lab", texts(&["true"])), ("route", texts(&["a,b", "c"])),]
        );
        assert_eq!(given::<NodeConfig>(&["--exit=false"]), [("exit", texts(&["false"]))]);
    }

    #[test]
    fn a_wrong_flag_value_names_the_flag() {
        let line = Line::<ClientConfig>::try_parse_from(["x", "--hops", "many"]).unwrap();
        let Err(ConfigError::Value { origin, .. }) = line.settings.load() else {
            unreachable!("a text is no number");
        };
        assert_eq!(origin, Origin::Flag("hops".to_owned()));
    }
}
