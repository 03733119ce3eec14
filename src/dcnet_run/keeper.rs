//! Keeps what a party must not forget in its private file.
//!
//! In: what a core wants remembered, in its order. Out: the file, never older than what was kept
//! before. Called by: the client and trustee programs.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::dcnet::{error::DcnetError, store};

/// The file, and how new it is.
pub struct Keeper {
    path: PathBuf,
    kept: Mutex<u64>,
}

impl Keeper {
    /// Of a file that may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, kept: Mutex::new(0) }
    }

    /// What the program before has left.
    ///
    /// # Errors
    /// When the file cannot be read or says something else.
    pub fn load<T: DeserializeOwned + Default>(&self) -> Result<T, DcnetError> {
        store::load_memory(&self.path)
    }

    /// Writes the file, unless a later state stands in it. States count up from 1.
    ///
    /// # Errors
    /// When it cannot be written: whoever goes on without it may forget.
    pub fn keep<T: Serialize>(&self, state: u64, memory: &T) -> Result<(), DcnetError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if state > *kept {
            store::save(&self.path, memory, 0o600)?;
            *kept = state;
        }
        Ok(())
    }
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcnet::memory::ClientMemory;

    #[test]
    fn a_later_state_is_not_overwritten_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.json");
        let keeper = Keeper::new(path.clone());
        assert_eq!(keeper.load::<ClientMemory>().unwrap(), ClientMemory::default());
        let state = |members: &[u16]| ClientMemory {
            spoken: Some(members.iter().copied().collect()),
            convicted: vec![crate::dcnet::member::PartyRef::Trustee(1)],
        };
        keeper.keep(2, &state(&[1, 2])).unwrap();
        keeper.keep(1, &state(&[1, 2, 3])).unwrap();
        assert_eq!(Keeper::new(path.clone()).load::<ClientMemory>().unwrap(), state(&[1, 2]));
        std::fs::write(&path, "{\"spoken\": 3}").unwrap();
        let error = keeper.load::<ClientMemory>().unwrap_err().to_string();
        assert!(error.contains("memory.json"), "{error}");
    }
}
