//! Where log records go: the journal under systemd, lines on standard error otherwise.
//!
//! In: records of the `log` facade, with fields such as `circuit`, `event`, `reason`.
//! Out: journal entries with these fields, or lines that end in `field=value`.
//! Called by: cli, once per process.
//!
//! Records of this program are logged down to the configured level; those of other crates only as
//! warnings and errors, unless the level is trace. Addresses and paths are never above debug, keys
//! never logged; that is kept by whoever logs.

use std::{fmt::Write as _, io::Write as _};

use log::{
    LevelFilter, Log, Metadata, Record,
    kv::{self, VisitSource},
};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use super::progress;

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No such level.
    #[error("expected a log level (error, warn, info, debug, trace, off), got {0:?}")]
    Level(String),
    /// Logs are set up already.
    #[error("expected logs to be set up once per process, got a second time")]
    Twice(#[from] log::SetLoggerError),
}

/// Sends this process's log records on: `role` becomes a field of every journal entry.
///
/// # Errors
/// If `level` is no level, or logs are set up already.
pub fn init(role: &str, level: &str) -> Result<(), LogError> {
    let level: LevelFilter = level.parse().map_err(|_| LogError::Level(level.to_owned()))?;
    let journal = if connected_to_journal() { JournalLog::new().ok() } else { None };
    let logger: Box<dyn Log> = match journal {
        Some(journal) => Box::new(
            journal.with_syslog_identifier(format!("cepa-{role}")).add_extra_field("ROLE", role),
        ),
        None => Box::new(terminal(level)),
    };
    log::set_boxed_logger(Box::new(Filtered { logger, level }))?;
    log::set_max_level(level);
    Ok(())
}

/// Keeps the records of other crates down.
struct Filtered {
    logger: Box<dyn Log>,
    level: LevelFilter,
}

impl Log for Filtered {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().starts_with("cepa");
        let level = match self.level {
            LevelFilter::Trace => LevelFilter::Trace,
            level if own => level,
            level => level.min(LevelFilter::Warn),
        };
        metadata.level() <= level
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            progress::above(|| self.logger.log(record));
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// One line per record on standard error: time, level, folder, message, fields.
fn terminal(level: LevelFilter) -> env_logger::Logger {
    env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let time = out.timestamp_millis();
            let level = record.level();
            let style = out.default_level_style(level);
            let place = place(record.target());
            let fields = fields(record.key_values());
            writeln!(out, "{time} {style}{level:<5}{style:#} {place}: {}{fields}", record.args())
        })
        .build()
}

/// The folder a record comes from: `cepa::node::client` is `node`.
fn place(target: &str) -> &str {
    let inner = target.strip_prefix("cepa::").unwrap_or(target);
    inner.split("::").next().unwrap_or(inner)
}

/// ` field=value` for each field.
fn fields(source: &dyn kv::Source) -> String {
    struct Fields(String);
    impl<'kvs> VisitSource<'kvs> for Fields {
        fn visit_pair(
            &mut self,
            key: kv::Key<'kvs>,
            value: kv::Value<'kvs>,
        ) -> Result<(), kv::Error> {
            write!(self.0, " {key}={value}")?;
            Ok(())
        }
    }
    let mut fields = Fields(String::new());
    // Writing into a string cannot fail.
    let _ = source.visit(&mut fields);
    fields.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(level: LevelFilter, target: &str, of: log::Level) -> bool {
        let filter = Filtered { logger: Box::new(terminal(level)), level };
        filter.enabled(&Metadata::builder().target(target).level(of).build())
    }

    #[test]
    fn other_crates_are_kept_down() {
        assert!(enabled(LevelFilter::Debug, "cepa::node", log::Level::Debug));
        assert!(!enabled(LevelFilter::Info, "cepa::node", log::Level::Debug));
        assert!(!enabled(LevelFilter::Debug, "netlink_proto", log::Level::Info));
        assert!(enabled(LevelFilter::Debug, "netlink_proto", log::Level::Warn));
        assert!(!enabled(LevelFilter::Error, "netlink_proto", log::Level::Warn));
        assert!(enabled(LevelFilter::Trace, "netlink_proto", log::Level::Trace));
    }

    #[test]
    fn a_line_ends_in_its_fields() {
        let pairs: &[(&str, i32)] = &[("circuit", 3), ("hops", 4)];
        assert_eq!(fields(&pairs), " circuit=3 hops=4");
        assert_eq!(place("cepa::node::client_loop"), "node");
        assert_eq!(place("hyper::proto"), "hyper");
    }

    #[test]
    fn a_level_is_checked() {
        assert!(matches!(init("node", "loud"), Err(LogError::Level(level)) if level == "loud"));
    }
}
