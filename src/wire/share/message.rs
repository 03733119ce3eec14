//! What peers and the tracker say to each other (source 001), as JSON in their sealed channel.
//!
//! In: JSON of the other side. Out: typed messages, and back. Called by: tracker, node.
//!
//! Lists of files may hold plain names, as in the source, or `{name, id, size, key}`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Consent, FileId, Session, ShareWireError, Via, hex_text, hex_text::base64_text};
use crate::model::{Cid, NodeId};

/// The longest JSON message.
pub const MAX_MESSAGE_LEN: usize = 16 * 1024;
/// The longest name of a file, in bytes of UTF-8.
pub const MAX_NAME_LEN: usize = 1024;
/// The longest note between uploader and downloader.
pub const MAX_NOTE_LEN: usize = 512;
/// Files that one circuit may announce.
pub const MAX_FILES: usize = 4096;
/// Uploaders of one request, at most.
pub const MAX_SOURCES: u8 = 4;
/// Sessions whose uploaders a request does not want again.
pub const MAX_AVOIDED: usize = 64;

/// A file that a peer is ready to share.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFile {
    /// What the tracker knows it by.
    pub id: FileId,
    /// Its public name; empty for a link share, which no list shows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// The key that the sharer signs with.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_text::optional")]
    pub key: Option<[u8; 32]>,
}

impl ListedFile {
    /// The file of a plain name, as source 001 lists it: known by its name alone.
    pub fn named(name: &str) -> Self {
        let id = blake3::derive_key("cepa name id v1", name.as_bytes());
        Self { id: FileId(id), name: name.to_owned(), size: 0, key: None }
    }

    /// Whether the name can stand in a list: short, no path, no control characters.
    pub fn is_listable(&self) -> bool {
        self.name.len() <= MAX_NAME_LEN
            && !self.name.contains(['/', '\\'])
            && !self.name.chars().any(char::is_control)
            && self.name != "."
            && self.name != ".."
    }
}

/// A list's entry on the wire: a name or a record.
#[derive(Deserialize)]
#[serde(untagged)]
enum NameOrFile {
    Name(String),
    File(ListedFile),
}

fn names_or_files<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<ListedFile>, D::Error> {
    let entries = Vec::<NameOrFile>::deserialize(deserializer)?;
    Ok(entries
        .into_iter()
        .map(|entry| match entry {
            NameOrFile::Name(name) => ListedFile::named(&name),
            NameOrFile::File(file) => file,
        })
        .collect())
}

/// A file of the catalogue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatalogueEntry {
    /// What to request.
    pub id: FileId,
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// The key that its sharer signs with.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_text::optional")]
    pub key: Option<[u8; 32]>,
    /// How many circuits offer it.
    pub sources: u32,
}

/// From a peer to the tracker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToTracker {
    /// The files that this circuit shares. A list may come in parts: the first replaces what was
    /// announced, `more` says that another part follows.
    Ls {
        /// The files.
        #[serde(deserialize_with = "names_or_files")]
        files: Vec<ListedFile>,
        /// This part adds to the one before.
        #[serde(default, skip_serializing_if = "is_false")]
        more: bool,
    },
    /// Asks for a page of the catalogue.
    Catalogue {
        /// Joins the answer to the question.
        ask: u32,
        /// Only names that contain this, whatever their case.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        filter: String,
        /// How many entries to pass over.
        #[serde(default)]
        skip: u32,
    },
    /// Asks for uploaders of a file.
    Request {
        /// Joins answers to the question.
        ask: u32,
        /// The file.
        file: FileId,
        /// The downloader's fresh X25519 key.
        #[serde(with = "hex_text")]
        key: [u8; 32],
        /// How many uploaders, 1 to 4.
        sources: u8,
        /// Sessions whose uploaders are not wanted again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        avoid: Vec<Session>,
        /// How the exits are joined.
        #[serde(default)]
        via: Via,
        /// For the uploader.
        #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_text")]
        note: Vec<u8>,
    },
    /// An uploader agrees to share.
    Answer {
        /// The session of the tracker's request.
        session: Session,
        /// The uploader's fresh X25519 key.
        #[serde(with = "hex_text")]
        key: [u8; 32],
        /// For the downloader.
        #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_text")]
        note: Vec<u8>,
        /// Its consent to the bridge.
        token: Consent,
    },
    /// An uploader does not want to share, or a peer is done with a session.
    Drop {
        /// The session.
        session: Session,
    },
    /// A downloader agrees to an offer.
    Consent {
        /// The session.
        session: Session,
        /// Its consent to the bridge.
        token: Consent,
    },
}

/// From the tracker to a peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToPeer {
    /// How many of the announced files are listed, and how soon to announce again.
    Listed {
        /// Files that this circuit now shares.
        files: u32,
        /// Files refused: over the quota, or with a name that cannot stand in a list.
        refused: u32,
        /// Announce again within so many seconds.
        again_s: u32,
    },
    /// A page of the catalogue.
    Catalogue {
        /// The question.
        ask: u32,
        /// The entries, by name.
        entries: Vec<CatalogueEntry>,
        /// How many entries match in all.
        total: u32,
    },
    /// How many uploaders were asked; zero: nobody offers the file.
    Asked {
        /// The question.
        ask: u32,
        /// Uploaders asked.
        sources: u8,
    },
    /// Asks an uploader to share a file.
    Request {
        /// The new session.
        session: Session,
        /// The file.
        file: FileId,
        /// The downloader's X25519 key.
        #[serde(with = "hex_text")]
        key: [u8; 32],
        /// From the downloader.
        #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_text")]
        note: Vec<u8>,
        /// What to consent to.
        bridge: Proposal,
    },
    /// Offers an uploader to a downloader.
    Offer {
        /// The question.
        ask: u32,
        /// The new session.
        session: Session,
        /// The uploader's X25519 key.
        #[serde(with = "hex_text")]
        key: [u8; 32],
        /// From the uploader.
        #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_text")]
        note: Vec<u8>,
        /// What to consent to.
        bridge: Proposal,
    },
    /// A session is over, or never came to be.
    Dropped {
        /// The session.
        session: Session,
        /// Why, in a few words.
        reason: String,
    },
    /// A message was refused.
    Refused {
        /// The question, if it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u32>,
        /// Why, in a few words.
        reason: String,
    },
}

/// What a peer is asked to consent to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// The id of the link between the two exits.
    #[serde(rename = "bridge_CID")]
    pub bridge_cid: uuid::Uuid,
    /// The other peer's exit.
    pub to: NodeId,
    /// Until when the exits may act on it: seconds since 1970.
    pub exp: u64,
}

impl Proposal {
    /// The id of the link between the exits.
    pub fn cid(&self) -> Cid {
        Cid::from_bytes(*self.bridge_cid.as_bytes())
    }
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl ToTracker {
    /// Reads a peer's message.
    ///
    /// # Errors
    /// When it is too long, is no such JSON, or breaks a limit.
    pub fn parse(json: &[u8]) -> Result<Self, ShareWireError> {
        let message: Self = parse(json, "a peer's message")?;
        match &message {
            Self::Ls { files, .. } if files.len() > MAX_FILES => {
                Err(too_long("files", MAX_FILES, files.len()))
            }
            Self::Request { sources, .. } if !(1..=MAX_SOURCES).contains(sources) => {
                Err(ShareWireError::malformed("1 to 4 sources", sources))
            }
            Self::Request { note, .. } | Self::Answer { note, .. } if note.len() > MAX_NOTE_LEN => {
                Err(too_long("note", MAX_NOTE_LEN, note.len()))
            }
            Self::Request { avoid, .. } if avoid.len() > MAX_AVOIDED => {
                Err(too_long("avoid", MAX_AVOIDED, avoid.len()))
            }
            Self::Catalogue { filter, .. } if filter.len() > MAX_NAME_LEN => {
                Err(too_long("filter", MAX_NAME_LEN, filter.len()))
            }
            _ => Ok(message),
        }
    }

    /// The JSON of the message.
    pub fn emit(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl ToPeer {
    /// Reads the tracker's message.
    ///
    /// # Errors
    /// When it is too long or no such JSON.
    pub fn parse(json: &[u8]) -> Result<Self, ShareWireError> {
        parse(json, "a tracker's message")
    }

    /// The JSON of the message.
    pub fn emit(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn parse<T: DeserializeOwned>(json: &[u8], expected: &'static str) -> Result<T, ShareWireError> {
    if json.len() > MAX_MESSAGE_LEN {
        return Err(too_long("message", MAX_MESSAGE_LEN, json.len()));
    }
    serde_json::from_slice(json).map_err(|error| ShareWireError::malformed(expected, error))
}

fn too_long(what: &'static str, most: usize, got: usize) -> ShareWireError {
    ShareWireError::TooLong { what, most, got }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_source_read() {
        let ls = ToTracker::parse(br#"{"type":"ls","files":["titanic","privateryan"]}"#).unwrap();
        let ToTracker::Ls { files, more: false } = ls else { panic!("{ls:?}") };
        assert_eq!(files[0], ListedFile::named("titanic"));
        assert_eq!(files[1].name, "privateryan");
    }

    #[test]
    fn limits_hold() {
        let long = format!(r#"{{"type":"ls","files":["{}"]}}"#, "a".repeat(MAX_MESSAGE_LEN));
        assert!(matches!(ToTracker::parse(long.as_bytes()), Err(ShareWireError::TooLong { .. })));
        let deep = "[".repeat(10_000);
        assert!(ToTracker::parse(deep.as_bytes()).is_err());
        for sources in ["0", "5"] {
            let json = format!(
                r#"{{"type":"request","ask":1,"file":"{}","key":"{}","sources":{sources}}}"#,
                "00".repeat(32),
                "11".repeat(32)
            );
            assert!(ToTracker::parse(json.as_bytes()).is_err(), "{sources}");
        }
    }

    #[test]
    fn names_that_are_paths_or_markup_controls_are_not_listed() {
        for name in ["../x", "a/b", "a\\b", "..", ".", "a\0b", "a\nb"] {
            assert!(!ListedFile::named(name).is_listable(), "{name:?}");
        }
        for name in ["<b>x", "Ünïcode ✓.mkv", "..a", ""] {
            assert!(ListedFile::named(name).is_listable(), "{name:?}");
        }
    }

    fn files() -> impl Strategy<Value = Vec<ListedFile>> {
        let key = prop::option::of(any::<[u8; 32]>());
        let file = (any::<[u8; 32]>(), ".{0,20}", any::<u64>(), key)
            .prop_map(|(id, name, size, key)| ListedFile { id: FileId(id), name, size, key });
        prop::collection::vec(file, 0..8)
    }

    proptest! {
        #[test]
        fn to_tracker_round_trips(
            files in files(), ask: u32, id: [u8; 32], key: [u8; 32], session: [u8; 16],
            note in prop::collection::vec(any::<u8>(), 0..MAX_NOTE_LEN), token: [u8; 16],
            filter in ".{0,30}",
        ) {
            let session = Session(session);
            for message in [
                ToTracker::Ls { files: files.clone(), more: ask.is_multiple_of(2) },
                ToTracker::Catalogue { ask, filter, skip: ask / 2 },
                ToTracker::Request {
                    ask, file: FileId(id), key, sources: 4, avoid: vec![session], via: Via::Code,
                    note: note.clone(),
                },
                ToTracker::Answer { session, key, note, token: Consent(token) },
                ToTracker::Drop { session },
                ToTracker::Consent { session, token: Consent(token) },
            ] {
                prop_assert_eq!(ToTracker::parse(&message.emit()), Ok(message));
            }
        }

        #[test]
        fn to_peer_round_trips(ask: u32, id: [u8; 32], session: [u8; 16], cid: [u8; 16], exp: u64,
            note in prop::collection::vec(any::<u8>(), 0..MAX_NOTE_LEN), reason in ".{0,40}") {
            let session = Session(session);
            let bridge = Proposal {
                bridge_cid: uuid::Uuid::from_bytes(cid), to: NodeId::from_bytes(id), exp,
            };
            for message in [
                ToPeer::Listed { files: ask, refused: 1, again_s: 60 },
                ToPeer::Asked { ask, sources: 3 },
                ToPeer::Request {
                    session, file: FileId(id), key: id, note: note.clone(), bridge: bridge.clone(),
                },
                ToPeer::Offer { ask, session, key: id, note, bridge },
                ToPeer::Dropped { session, reason: reason.clone() },
                ToPeer::Refused { ask: Some(ask), reason },
            ] {
                prop_assert_eq!(ToPeer::parse(&message.emit()), Ok(message));
            }
        }

        #[test]
        fn any_bytes_parse_or_err(bytes: Vec<u8>) {
            let _ = ToTracker::parse(&bytes);
            let _ = ToPeer::parse(&bytes);
        }
    }
}
