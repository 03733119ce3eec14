//! A length of time as people write it: `30s`, `10m`, `1h30m`.
//!
//! In: text. Out: a [`std::time::Duration`]. Called by: the settings of every role, cli.

use std::{fmt, str::FromStr, time::Duration};

/// A length of time, written as numbers with units: `ms`, `s`, `m`, `h`, `d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Period(Duration);

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Period {
    /// A whole number of milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A whole number of seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A whole number of minutes.
    pub const fn from_mins(minutes: u64) -> Self {
        Self::from_secs(60 * minutes)
    }

    /// A whole number of hours.
    pub const fn from_hours(hours: u64) -> Self {
        Self::from_mins(60 * hours)
    }

    /// The same as a standard duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Period> for Duration {
    fn from(period: Period) -> Self {
        period.0
    }
}

/// Text that is no length of time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a duration such as 30s, 10m or 1h30m (units: ms, s, m, h, d), got {0:?}")]
pub struct ParsePeriodError(String);

impl FromStr for Period {
    type Err = ParsePeriodError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePeriodError(text.to_owned());
        let mut rest = text;
        let mut millis: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, after) = rest.split_at(digits);
            let letters = after.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            millis = number
                .checked_mul(*size)
                .and_then(|part| millis.checked_add(part))
                .ok_or_else(wrong)?;
            rest = after;
        }
        Ok(Self::from_millis(millis))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in UNITS {
            if millis >= size {
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

impl serde::Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("1d", 86_400_000)]
        {
            assert_eq!(text.parse(), Ok(Period::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "m", "10 m", "1x", "-1s", "1.5s", "99999999999999999999s", "1h30"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(millis in 0..u64::MAX / 2) {
            let period = Period::from_millis(millis);
            prop_assert_eq!(period.to_string().parse(), Ok(period));
        }

        #[test]
        fn any_text_is_a_period_or_an_error(text: String) {
            let _ = text.parse::<Period>();
        }
    }
}
