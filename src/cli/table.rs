//! Columns and amounts as people read them.
//!
//! In: rows of texts, numbers with units. Out: aligned lines. Called by: every command that shows
//! more than one thing.

use std::fmt::Write as _;

/// Rows under a header, each column as wide as its widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Appends a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, two spaces between columns, no spaces at the end.
    pub(crate) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing into a string cannot fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// `1.2 MB`: powers of 1000.
pub(crate) fn bytes(amount: u64) -> String {
    let mut value = amount as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    if unit == "B" || value >= 99.5 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// `2 min 5 s`: the two largest units.
pub(crate) fn seconds(amount: u64) -> String {
    match amount {
        0..60 => format!("{amount} s"),
        60..3600 => two(amount / 60, "min", amount % 60, "s"),
        3600..86_400 => two(amount / 3600, "h", amount % 3600 / 60, "min"),
        _ => two(amount / 86_400, "d", amount % 86_400 / 3600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large} {large_unit}")
    } else {
        format!("{large} {large_unit} {small} {small_unit}")
    }
}

/// `0.41 ms`, or `no answer`.
pub(crate) fn round_trip(rtt_ms: Option<f64>) -> String {
    match rtt_ms {
        Some(rtt) if rtt < 10.0 => format!("{rtt:.2} ms"),
        Some(rtt) => format!("{rtt:.0} ms"),
        None => "no answer".to_owned(),
    }
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(amount: usize, one: &str) -> String {
    if amount == 1 { format!("1 {one}") } else { format!("{amount} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["hop", "node"]);
        table.row(["1".to_owned(), "otter".to_owned()]);
        table.row(["10".to_owned(), "λ".to_owned()]);
        assert_eq!(table.lines(), ["hop  node", "1    otter", "10   λ"]);
    }

    #[test]
    fn amounts() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1234), "1.2 kB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(123_456_789), "123 MB");
        assert_eq!(seconds(59), "59 s");
        assert_eq!(seconds(125), "2 min 5 s");
        assert_eq!(seconds(86_400), "1 d");
        assert_eq!(round_trip(Some(0.414)), "0.41 ms");
        assert_eq!(round_trip(None), "no answer");
        assert_eq!(count(1, "exit"), "1 exit");
    }
}
