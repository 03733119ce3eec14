//! Downloads on disk: what survives, what is noticed, what is never written.

use super::*;
use crate::peer::{
    geometry::Size,
    manifest::Entry,
    name::InnerPath,
    tree::{Root, Tree, group_hashes, hash_of_groups},
};

fn tree_of(bytes: &[u8]) -> Tree {
    Tree::of(Size::try_from(bytes.len() as u64).unwrap(), bytes)
}

fn part(folder: &Path, bytes: &[u8], dir: Option<u32>) -> Part {
    let tree = tree_of(bytes);
    let content = Content { root: tree.root(), size: tree.size(), dir };
    let name = FileName::new("ä name").unwrap();
    Part::open(&folder.join("s"), &folder.join("d"), &"ab".repeat(32), name, content).unwrap()
}

fn write(part: &Part, bytes: &[u8], chunk: u32) {
    let data = bytes.chunks(CHUNK_LEN as usize).nth(chunk as usize).unwrap();
    let size = part.content().size;
    let hash = hash_of_groups(size, &group_hashes(size, chunk, data));
    part.write_chunk(chunk, data, hash).unwrap();
}

#[test]
fn what_was_written_survives_and_damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    let first = part(folder.path(), &bytes, None);
    write(&first, &bytes, 2);
    write(&first, &bytes, 0);
    drop(first);
    let second = part(folder.path(), &bytes, None);
    second.check(|_| true).unwrap();
    assert!(second.have().iter().eq([0, 2]));
    assert_eq!(second.have_bytes(), 262_144 + 700_000 - 2 * 262_144);
    open(second.path()).unwrap().write_all_at(b"x", 5).unwrap();
    let third = part(folder.path(), &bytes, None);
    third.check(|_| true).unwrap();
    assert!(third.have().iter().eq([2]));
    assert!(third.finish().is_err(), "not whole");
    write(&third, &bytes, 0);
    write(&third, &bytes, 1);
    let path = third.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(path.file_name().unwrap(), "ä name");
    assert_eq!(free_name(&folder.path().join("d"), "ä name").file_name().unwrap(), "ä name (2)");
}

#[test]
fn a_directory_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let entry = |path: &str, size, kind| Entry { kind, size, path: InnerPath::new(path).unwrap() };
    let manifest = Manifest::new(vec![
        entry("a/first", 300_000, EntryKind::File),
        entry("a/empty", 0, EntryKind::File),
        entry("run", 12, EntryKind::Runnable),
        entry("nothing", 0, EntryKind::Directory),
    ])
    .unwrap();
    let mut bytes = manifest.emit();
    let list = bytes.len() as u32;
    bytes.extend((0..300_012u32).map(|n| (n % 249) as u8));
    let part = part(folder.path(), &bytes, Some(list));
    assert_eq!(part.front(), 1);
    write(&part, &bytes, 0);
    write(&part, &bytes, 1);
    part.check(|_| true).unwrap();
    assert!(part.have().is_full());
    let path = part.finish().unwrap();
    let list = list as usize;
    assert_eq!(fs::read(path.join("a/first")).unwrap(), &bytes[list..list + 300_000]);
    assert_eq!(fs::read(path.join("run")).unwrap(), &bytes[list + 300_000..]);
    assert_eq!(fs::read(path.join("a/empty")).unwrap(), b"");
    assert!(path.join("nothing").is_dir());
    let mode = fs::metadata(path.join("run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
}

#[test]
fn nothing_is_written_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("d");
    fs::create_dir(&dest).unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, dest.join("ä name.abababab.cepa-part")).unwrap();
    let content = Content {
        root: Root(*blake3::hash(b"x").as_bytes()),
        size: Size::try_from(1).unwrap(),
        dir: None,
    };
    let name = FileName::new("ä name").unwrap();
    let opened = Part::open(&folder.path().join("s"), &dest, &"ab".repeat(32), name, content);
    assert!(opened.is_err());
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
}
