//! Descriptors, the signed directory and the choice of paths.
//!
//! In: signed bytes. Out: checked descriptors, paths.
//! Called by: controller, node, cli.
//!
//! ```text
//! node: Descriptor -> SignedDescriptor -> POST /nodes -> controller
//! controller: SignedDescriptors -> SignedDirectory -> GET /directory -> client
//! client: SignedDirectory -> Directory (checked) -> choose_path -> hops
//! ```

mod answers;
mod backoff;
mod base64_text;
mod descriptor;
mod error;
mod http;
mod latency;
mod link;
mod path;
mod probe;
mod signed;
mod store;
#[cfg(test)]
pub(crate) mod test_network;
mod view;

pub use answers::{
    Entry, JoinProof, MAX_REQUEST_LEN, NodeAnswer, NodeList, NodeSummary, Problem, Registered,
    Registration, SignedEntry, Whoami,
};
pub use backoff::Backoff;
pub use descriptor::{
    CLOCK_TOLERANCE, DESCRIPTOR_VALIDITY, Descriptor, MAX_DESCRIPTOR_LEN, SignedDescriptor,
    WIRE_VERSION, check_name, is_label,
};
pub use error::DirectoryError;
pub use http::{ClientError, ControllerClient, LONG_POLL};
pub use latency::LinkTimes;
pub use link::{ControllerLink, JoinToken, TokenId, TokenSecret};
pub use path::{PathError, PathRules, choose_path};
pub use probe::{check_probe, sign_probe};
pub use signed::{
    DirectoryBody, KeyChange, MAX_DIRECTORY_LEN, MAX_KEY_CHANGES, SignedDirectory, SignedKeyChange,
};
pub use store::{DirectoryCache, Guard};
pub use view::{Directory, Member};
