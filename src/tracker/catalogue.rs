//! Which circuit shares which file.
//!
//! In: lists of circuits, questions. Out: entries, uploaders. Called by: the tracker's state.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    model::Cid,
    wire::share::{CatalogueEntry, FileId, ListedFile},
};

/// What one circuit may announce.
#[derive(Clone, Debug)]
pub struct Quota {
    /// Files of one circuit.
    pub files: usize,
    /// Bytes of all names of one circuit.
    pub name_bytes: usize,
    /// Files of all circuits.
    pub all_files: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { files: 4_096, name_bytes: 256 * 1024, all_files: 1_000_000 }
    }
}

/// All files of all circuits.
#[derive(Default)]
pub(super) struct Catalogue {
    quota: Quota,
    sharers: HashMap<FileId, BTreeMap<Cid, ListedFile>>,
    by_leg: HashMap<Cid, (BTreeSet<FileId>, usize)>,
    /// Public files, by lower-case name.
    by_name: BTreeSet<(String, FileId)>,
    files: usize,
}

impl Catalogue {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, ..Self::default() }
    }

    /// Files of all circuits, one shared twice counted twice.
    pub(super) fn len(&self) -> usize {
        self.files
    }

    /// Adds a file of a circuit; says whether it was taken.
    pub(super) fn add(&mut self, leg: Cid, file: ListedFile) -> bool {
        let (files, name_bytes) = self.by_leg.entry(leg).or_default();
        let is_new = !files.contains(&file.id);
        if !is_new
            || !file.is_listable()
            || files.len() >= self.quota.files
            || *name_bytes + file.name.len() > self.quota.name_bytes
            || self.files >= self.quota.all_files
        {
            return !is_new && file.is_listable();
        }
        files.insert(file.id);
        *name_bytes += file.name.len();
        self.files += 1;
        if !file.name.is_empty() {
            self.by_name.insert((file.name.to_lowercase(), file.id));
        }
        self.sharers.entry(file.id).or_default().insert(leg, file);
        true
    }

    /// Forgets what a circuit shares; says how much that was.
    pub(super) fn remove_leg(&mut self, leg: Cid) -> usize {
        let Some((files, _)) = self.by_leg.remove(&leg) else { return 0 };
        for id in &files {
            let Some(sharers) = self.sharers.get_mut(id) else { continue };
            let Some(file) = sharers.remove(&leg) else { continue };
            let key = file.name.to_lowercase();
            if !sharers.values().any(|other| other.name.to_lowercase() == key) {
                self.by_name.remove(&(key, *id));
            }
            if sharers.is_empty() {
                self.sharers.remove(id);
            }
        }
        self.files -= files.len();
        files.len()
    }

    /// The files of a circuit.
    pub(super) fn of(&self, leg: Cid) -> impl Iterator<Item = &ListedFile> {
        let files = self.by_leg.get(&leg).into_iter().flat_map(|(files, _)| files);
        files.filter_map(move |id| self.sharers.get(id)?.get(&leg))
    }

    /// The circuits that share a file.
    pub(super) fn sharers(&self, file: &FileId) -> impl Iterator<Item = Cid> {
        self.sharers.get(file).into_iter().flat_map(|sharers| sharers.keys().copied())
    }

    /// Public files whose name contains `filter`: a page, and how many there are in all. `room`
    /// bounds the page's JSON, in bytes.
    pub(super) fn page(
        &self,
        filter: &str,
        skip: usize,
        mut room: usize,
    ) -> (Vec<CatalogueEntry>, u32) {
        let filter = filter.to_lowercase();
        let (mut entries, mut total) = (Vec::new(), 0u32);
        let mut is_full = false;
        for (_, id) in self.by_name.iter().filter(|(name, _)| name.contains(&filter)) {
            total += 1;
            if total as usize <= skip || is_full {
                continue;
            }
            let Some(sharers) = self.sharers.get(id) else { continue };
            let Some(file) = sharers.values().find(|file| !file.name.is_empty()) else { continue };
            let entry = CatalogueEntry {
                id: *id,
                name: file.name.clone(),
                size: file.size,
                key: file.key,
                sources: sharers.len() as u32,
            };
            let length = serde_json::to_vec(&entry).map_or(usize::MAX, |json| json.len() + 1);
            if length > room {
                is_full = true;
                continue;
            }
            room -= length;
            entries.push(entry);
        }
        (entries, total)
    }
}
