//! Links: what one person gives another, so that they find and can check a content.
//!
//! In: link text; the root, size and name of a content. Out: [`ShareLink`], [`Content`], the ids
//! that the tracker knows. Called by: peer_run, cli, web.
//!
//! ```text
//! cepa:?root=<64 hex>&size=<bytes>&name=<percent-encoded>[&key=<64 hex>][&dir=<bytes>]
//! ```
//!
//! `key` is the secret of a link share: without it nobody can ask for the content, or read who does.
//! `dir` is the length of a directory's list of files, with which its content begins.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    geometry::{Size, TooLarge},
    name::{BadName, FileName},
    tree::{NoHash, Root, hex32},
};

const SCHEME: &str = "cepa:?";
/// The longest link, in bytes: a name of 255 bytes, every byte encoded, and the rest.
const LONGEST: usize = 1200;
const PUBLIC_ID: &str = "cepa file id v1";
const HIDDEN_ID: &str = "cepa link id v1";

/// The secret of a link share.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct LinkSecret(pub [u8; 32]);

impl fmt::Debug for LinkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkSecret(redacted)")
    }
}

/// What a content is, without its name: enough to check every byte of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Content {
    /// The hash of the content.
    pub root: Root,
    /// Its size.
    pub size: Size,
    /// The length of a directory's list, in bytes; none if it is one file.
    pub dir: Option<u32>,
}

impl Content {
    /// The length of [`Content::emit`].
    pub const LEN: usize = 44;

    /// `root 32 | size u64 | list length u32, 0 for one file`.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(&self.root.0);
        bytes[32..40].copy_from_slice(&self.size.bytes().to_be_bytes());
        bytes[40..].copy_from_slice(&self.dir.unwrap_or(0).to_be_bytes());
        bytes
    }

    /// Reads what [`Content::emit`] wrote; none if the sizes are impossible.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let (root, rest) = bytes.split_first_chunk::<32>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let list = u32::from_be_bytes(*rest.first_chunk()?);
        let size = Size::try_from(u64::from_be_bytes(*size)).ok()?;
        let dir = (list != 0).then_some(list);
        let fits = dir.is_none_or(|list| super::manifest::can_have_list(size, list));
        fits.then_some(Self { root: Root(*root), size, dir })
    }

    /// What the tracker knows the content as; it tells nothing about the content, nor the secret.
    pub fn id(&self, secret: Option<&LinkSecret>) -> [u8; 32] {
        let content = self.emit();
        match secret {
            None => blake3::derive_key(PUBLIC_ID, &content),
            Some(secret) => {
                let mut both = Zeroizing::new([0; Self::LEN + 32]);
                both[..Self::LEN].copy_from_slice(&content);
                both[Self::LEN..].copy_from_slice(&secret.0);
                blake3::derive_key(HIDDEN_ID, both.as_ref())
            }
        }
    }
}

/// What one person gives another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShareLink {
    /// What it leads to.
    pub content: Content,
    /// What to call it.
    pub name: FileName,
    /// The secret, if it is a link share; none if it is in the catalogue.
    pub secret: Option<LinkSecret>,
}

/// What is wrong with a link.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadLink {
    /// It is something else.
    #[error("expected a link such as {SCHEME}root=...&size=...&name=..., got {0:?}")]
    Form(String),
    /// Something is not there.
    #[error("expected {0}= in the link; was it copied whole?")]
    Missing(&'static str),
    /// Something is there twice, or is not known.
    #[error("expected each of root, size, name, key and dir at most once, got {0:?}")]
    Surprise(String),
    /// A hash or secret is not hexadecimal.
    #[error("{0}: {1}")]
    Hash(&'static str, NoHash),
    /// A number is not one.
    #[error("{0}: expected a number of bytes, got {1:?}")]
    Number(&'static str, String),
    /// The name is not safe.
    #[error("name: {0}")]
    Name(#[from] BadName),
    /// The size is impossible.
    #[error("size: {0}")]
    Size(#[from] TooLarge),
    /// A directory's list is longer than the content, or too long to be one.
    #[error("dir: expected a list of files inside the content, got {0} bytes")]
    Dir(u32),
}

impl ShareLink {
    /// Whether a text is meant as a link.
    pub fn is_meant(text: &str) -> bool {
        text.trim_start().starts_with("cepa:?")
    }

    /// What the tracker knows the content as.
    pub fn id(&self) -> [u8; 32] {
        self.content.id(self.secret.as_ref())
    }
}

impl fmt::Display for ShareLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Content { root, size, dir } = self.content;
        write!(f, "{SCHEME}root={root}&size={}&name=", size.bytes())?;
        for byte in self.name.as_str().bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        if let Some(secret) = &self.secret {
            write!(f, "&key={}", Root(secret.0))?;
        }
        if let Some(dir) = dir {
            write!(f, "&dir={dir}")?;
        }
        Ok(())
    }
}

/// Undoes percent-encoding; none if it is broken or no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl FromStr for ShareLink {
    type Err = BadLink;

    fn from_str(text: &str) -> Result<Self, BadLink> {
        let text = text.trim();
        let start = || text.chars().take(60).collect::<String>();
        let query = text
            .strip_prefix(SCHEME)
            .filter(|_| text.len() <= LONGEST)
            .ok_or_else(|| BadLink::Form(start()))?;
        let mut fields: [(&'static str, Option<&str>); 5] =
            [("root", None), ("size", None), ("name", None), ("key", None), ("dir", None)];
        for part in query.split('&') {
            let surprise = || BadLink::Surprise(part.chars().take(60).collect());
            let (key, value) = part.split_once('=').ok_or_else(surprise)?;
            let field = fields.iter_mut().find(|(name, _)| *name == key).ok_or_else(surprise)?;
            if field.1.replace(value).is_some() {
                return Err(surprise());
            }
        }
        let [(_, root), (_, size), (_, name), (_, key), (_, dir)] = fields;
        let needed = |name, value: Option<_>| value.ok_or(BadLink::Missing(name));
        let number = |name, value: &str| {
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            let parsed = value.parse::<u64>().ok().filter(|_| digits);
            parsed.ok_or_else(|| BadLink::Number(name, value.chars().take(30).collect()))
        };
        let size = Size::try_from(number("size", needed("size", size)?)?)?;
        let name = needed("name", name)?;
        let dir = dir.map(|text| {
            let length = number("dir", text)?;
            u32::try_from(length).map_err(|_| BadLink::Number("dir", text.to_owned()))
        });
        let root = needed("root", root)?.parse().map_err(|error| BadLink::Hash("root", error))?;
        let link = Self {
            content: Content { root, size, dir: dir.transpose()? },
            name: FileName::new(decoded(name).ok_or_else(|| BadLink::Form(start()))?)?,
            secret: key
                .map(|key| hex32(key).map(LinkSecret).map_err(|error| BadLink::Hash("key", error)))
                .transpose()?,
        };
        match link.content.dir {
            Some(list) if !super::manifest::can_have_list(size, list) => Err(BadLink::Dir(list)),
            _ => Ok(link),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link() -> ShareLink {
        ShareLink {
            content: Content {
                root: Root([0xab; 32]),
                size: Size::try_from(12345).unwrap(),
                dir: None,
            },
            name: FileName::new("holiday & sun").unwrap(),
            secret: Some(LinkSecret([0x01; 32])),
        }
    }

    #[test]
    fn text_as_documented() {
        let text = format!(
            "cepa:?root={}&size=12345&name=holiday%20%26%20sun&key={}",
            "ab".repeat(32),
            "01".repeat(32)
        );
        assert_eq!(link().to_string(), text);
        assert_eq!(format!(" {text}\n").parse(), Ok(link()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let root = "ab".repeat(32);
        let refused = |text: String| text.parse::<ShareLink>().unwrap_err().to_string();
        assert!(refused("magnet:?xt=1".into()).starts_with("expected a link"));
        assert_eq!(
            refused(format!("cepa:?root={root}&name=a")),
            "expected size= in the link; was it copied whole?"
        );
        assert!(refused(format!("cepa:?root={root}&size=1&name=..")).starts_with("name: "));
        assert!(refused(format!("cepa:?root={root}&size=1&name=%2Fa")).starts_with("name: "));
        assert!(refused(format!("cepa:?root={root}&size=+1&name=a")).starts_with("size: "));
        assert!(refused(format!("cepa:?root={root}&size=1&name=a&dir=9")).starts_with("dir: "));
        assert!(refused(format!("cepa:?root={root}&size=1&size=1&name=a")).contains("once"));
        assert!(refused("cepa:?root=xy&size=1&name=a".into()).starts_with("root: "));
    }

    #[test]
    fn the_tracker_cannot_tell_a_link_share() {
        let hidden = link();
        let public = ShareLink { secret: None, ..link() };
        let other = ShareLink { secret: Some(LinkSecret([2; 32])), ..link() };
        assert_ne!(hidden.id(), public.id());
        assert_ne!(hidden.id(), other.id());
        assert_eq!(public.id(), public.content.id(None));
        assert!(!format!("{hidden:?}").contains("0101"));
    }

    proptest! {
        #[test]
        fn links_round_trip(
            root: [u8; 32],
            secret: Option<[u8; 32]>,
            size in 100u64..(1 << 40),
            name in "[^/\0]{1,60}",
            dir in proptest::option::of(16u32..100),
        ) {
            prop_assume!(name != "." && name != "..");
            let link = ShareLink {
                content: Content { root: Root(root), size: Size::try_from(size).unwrap(), dir },
                name: FileName::new(name).unwrap(),
                secret: secret.map(LinkSecret),
            };
            prop_assert_eq!(Content::parse(&link.content.emit()), Some(link.content));
            prop_assert_eq!(link.to_string().parse(), Ok(link));
        }

        #[test]
        fn any_text_is_a_link_or_an_error(text: String, tail in "(root|size|name|key|dir|[a-f0-9%&=])*") {
            let _ = text.parse::<ShareLink>();
            if let Ok(link) = format!("cepa:?{tail}").parse::<ShareLink>() {
                prop_assert_eq!(link.to_string().parse(), Ok(link));
            }
        }
    }
}
