//! From what a client says of itself to its isolation group.
//!
//! In: the bytes of a login. Out: a group's number. Called by: the proxies.

/// Makes groups; the same login is the same group until the program ends.
#[derive(Clone)]
pub(super) struct Groups {
    key: [u8; 32],
}

impl Groups {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut key);
        Self { key }
    }

    /// The group of a login. Nobody can choose one that another login has.
    pub(super) fn of(&self, login: &[u8]) -> u32 {
        let hash = blake3::keyed_hash(&self.key, login);
        let number = hash.as_bytes().first_chunk().map_or(1, |bytes| u32::from_le_bytes(*bytes));
        // 0 is everybody without a login.
        number.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_a_group_and_another_login_another() {
        let groups = Groups::new();
        assert_eq!(groups.of(b"a"), groups.of(b"a"));
        assert_ne!(groups.of(b"a"), groups.of(b"b"));
        assert_ne!(groups.of(b""), 0);
    }
}
