//! `scripts/flash` on images of both layouts and on a loop device that stands in for the card.
//!
//! The images are made here: a partition table, a FAT that looks like the firmware's, an ext4 with
//! what the script asks for. What it wrote is read back with the file systems' own tools.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const MIB: u64 = 1 << 20;
const BOOT_AT: u64 = 4 * MIB;
const BOOT: u64 = 40 * MIB;
const ROOT: u64 = 48 * MIB;
const SIZE: u64 = BOOT_AT + BOOT + ROOT;
const FINGERPRINT: &str = "6f1ed002ab5595859014ebf0951522d96f1ed002ab5595859014ebf0951522d9";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a tool that must succeed; returns what it printed.
fn tool(program: &str, words: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(words).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn at(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with an image, a package and keys.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(codename: &str) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.make_image(codename);
        bench.make_package("arm64");
        fs::write(bench.path("key.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 somebody\n").unwrap();
        fs::write(bench.path("wifi.key"), "correct horse").unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make_image(&self, codename: &str) {
        let image = self.path("raspios.img");
        fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let table = format!(
            "label: dos\n{},{},c\n{},{},83\n",
            BOOT_AT / 512,
            BOOT / 512,
            (BOOT_AT + BOOT) / 512,
            ROOT / 512
        );
        fs::write(self.path("table"), table).unwrap();
        let commands = format!("sfdisk -q {} <{}", at(&image), at(&self.path("table")));
        tool("sh", &["-c", &commands]);

        let boot = self.path("boot");
        fs::File::create(&boot).unwrap().set_len(BOOT).unwrap();
        tool("mkfs.vfat", &["-F", "32", "-n", "bootfs", at(&boot)]);
        let line =
            "console=serial0,115200 root=PARTUUID=1-02 rootfstype=ext4 fsck.repair=yes rootwait\n";
        fs::write(self.path("cmdline.txt"), line).unwrap();
        let mut files = vec!["cmdline.txt"];
        if codename == "trixie" {
            for name in ["user-data", "meta-data", "network-config"] {
                fs::write(self.path(name), "#cloud-config\n").unwrap();
                files.push(name);
            }
        }
        for file in files {
            tool("mcopy", &["-i", at(&boot), at(&self.path(file)), "::"]);
        }

        let tree = self.path("tree");
        for dir in ["usr/lib/aarch64-linux-gnu", "etc/systemd/system", "var/lib", "boot/firmware"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
        }
        let release = format!("PRETTY_NAME=\"Debian\"\nVERSION_CODENAME={codename}\n");
        fs::write(tree.join("usr/lib/os-release"), release).unwrap();
        fs::write(tree.join("etc/hostname"), "raspberrypi\n").unwrap();
        let root = self.path("root");
        let blocks = (ROOT / 1024).to_string();
        tool(
            "mke2fs",
            &[
                "-q",
                "-t",
                "ext4",
                "-b",
                "1024",
                "-L",
                "rootfs",
                "-d",
                at(&tree),
                at(&root),
                &blocks,
            ],
        );

        for (part, offset) in [(&boot, BOOT_AT), (&root, BOOT_AT + BOOT)] {
            let (from, to) = (format!("if={}", at(part)), format!("of={}", at(&image)));
            let seek = format!("seek={}", offset / MIB);
            tool("dd", &[&from, &to, "bs=1M", &seek, "conv=notrunc,sparse", "status=none"]);
        }
    }

    fn make_package(&self, arch: &str) {
        let dir = self.path("deb");
        fs::create_dir_all(dir.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: cepa\nVersion: 0.1.0\nArchitecture: {arch}\nMaintainer: nobody <n@example.org>\nDescription: x\n"
        );
        fs::write(dir.join("DEBIAN/control"), control).unwrap();
        fs::write(dir.join("payload"), vec![7; 300_000]).unwrap();
        tool("dpkg-deb", &["--build", "-Znone", at(&dir), at(&self.path("cepa.deb"))]);
    }

    fn flash(&self, words: &[&str]) -> Output {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/flash"))
            .args(["--image", at(&self.path("raspios.img"))])
            .args(["--deb", at(&self.path("cepa.deb"))])
            .args(words)
            .output()
            .unwrap()
    }

    fn node(&self, words: &[&str]) -> Output {
        let token = format!(
            "cepa-join://203.0.113.10:5000/{FINGERPRINT}/0123456789abcdef/{}",
            "00".repeat(32)
        );
        let mut all = vec!["--role", "node", "--join", &token];
        all.extend(words);
        self.flash(&all)
    }

    /// Refused with these words, and nothing was written.
    fn refused(&self, output: &Output, code: i32, words: &str) {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{words:?} is not in {said:?}");
        for name in ["my.img", "my.img.part"] {
            assert!(!self.path(name).exists(), "{name} was written although: {said}");
        }
    }
}

/// A file of the image's root partition.
fn cat(image: &Path, file: &str) -> String {
    let root = format!("{}?offset={}", at(image), BOOT_AT + BOOT);
    tool("debugfs", &["-R", &format!("cat {file}"), &root])
}

fn stat(image: &Path, file: &str) -> String {
    let root = format!("{}?offset={}", at(image), BOOT_AT + BOOT);
    tool("debugfs", &["-R", &format!("stat {file}"), &root])
}

fn check_file_systems(image: &Path) {
    tool("e2fsck", &["-fn", &format!("{}?offset={}", at(image), BOOT_AT + BOOT)]);
    let boot = image.with_extension("boot");
    let (from, to) = (format!("if={}", at(image)), format!("of={}", at(&boot)));
    let (skip, count) = (format!("skip={}", BOOT_AT / MIB), format!("count={}", BOOT / MIB));
    tool("dd", &[&from, &to, "bs=1M", &skip, &count, "status=none"]);
    tool("fsck.vfat", &["-n", at(&boot)]);
}

#[test]
fn a_node_s_card_has_all_it_needs_and_no_secret_of_ours() {
    for codename in ["bookworm", "trixie"] {
        let bench = Bench::new(codename);
        let out = bench.path("my.img");
        let (key, psk) = (bench.path("key.pub"), bench.path("wifi.key"));
        let output = bench.node(&[
            "--name",
            "otter",
            "--exit",
            "--ssh-key",
            at(&key),
            "--wifi",
            "cellar 5",
            "--wifi-key",
            at(&psk),
            "--wifi-country",
            "DE",
            "--out",
            at(&out),
        ]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        check_file_systems(&out);
        assert_eq!(
            cat(&out, "/etc/cepa/node.toml.d/10-flash.toml"),
            format!(
                "# Written by scripts/flash.\ncontroller = \"cepa://203.0.113.10:5000/{FINGERPRINT}\"\nname = \"otter\"\nexit = true\n"
            )
        );
        assert!(cat(&out, "/etc/credstore/cepa.node.join").starts_with("cepa-join://203.0.113.10"));
        assert!(stat(&out, "/etc/credstore/cepa.node.join").contains("Mode:  0600"));
        assert!(
            cat(&out, "/etc/NetworkManager/system-connections/cepa-wifi.nmconnection")
                .contains("psk=correct horse")
        );
        assert_eq!(cat(&out, "/etc/hostname"), "otter\n");
        assert!(cat(&out, "/var/lib/cepa-flash/settings").contains("LOCKDOWN=no\nSSH_USER=pi"));
        assert!(stat(&out, "/var/lib/cepa-flash/cepa.deb").contains("User:     0   Group:     0"));
        for wants in ["sysinit.target.wants", "NetworkManager.service.requires"] {
            let link = format!("/etc/systemd/system/{wants}/cepa-firstboot.service");
            assert!(stat(&out, &link).contains("Type: symlink"), "{link}");
        }
        let boot = format!("{}@@{BOOT_AT}", at(&out));
        let line = tool("mtype", &["-i", &boot, "::cmdline.txt"]);
        assert!(line.trim_end().ends_with("rootwait cfg80211.ieee80211_regdom=DE"), "{line}");
        assert!(tool("mtype", &["-i", &boot, "::cepa.txt"]).contains("no password"));
        // Flashed once more from its own result, nothing is there twice.
        let again = bench.path("again.img");
        fs::rename(&out, bench.path("raspios.img")).unwrap();
        let output = bench.node(&["--out", at(&again)]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        check_file_systems(&again);
        assert!(!cat(&again, "/etc/cepa/node.toml.d/10-flash.toml").contains("otter"));
    }
}

#[test]
fn a_client_is_locked_down_and_an_image_may_be_compressed() {
    let bench = Bench::new("bookworm");
    let image = bench.path("raspios.img");
    tool("xz", &["-0", "-k", at(&image)]);
    let packed = bench.path("raspios.img.xz");
    let sum = tool("sha256sum", &[at(&packed)])[..64].to_owned();
    let (out, link) = (bench.path("my.img"), format!("cepa://203.0.113.10:5000/{FINGERPRINT}"));
    let words =
        ["--image", at(&packed), "--sha256", &sum, "--role", "client", "--controller", &link];
    let output = bench.flash(&[&words[..], &["--out", at(&out)]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(cat(&out, "/var/lib/cepa-flash/settings").contains("LOCKDOWN=yes\nSSH_USER=\n"));
    assert!(
        cat(&out, "/etc/cepa/client.toml.d/10-flash.toml")
            .contains("route = [\"0.0.0.0/0\", \"::/0\"]")
    );
    fs::remove_file(&out).unwrap();

    let cut = fs::read(&packed).unwrap();
    fs::write(&packed, &cut[..cut.len() / 2]).unwrap();
    let words =
        ["--image", at(&packed), "--role", "client", "--controller", &link, "--out", at(&out)];
    bench.refused(&bench.flash(&words), 1, "cannot be unpacked");
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_written() {
    let bench = Bench::new("bookworm");
    let out = bench.path("my.img");
    let out = ["--out", at(&out)];
    bench.refused(&bench.flash(&out), 2, "expected --role");
    bench.refused(
        &bench.flash(&[&out[..], &["--role", "node"]].concat()),
        2,
        "expected --join TOKEN",
    );
    bench.refused(&bench.node(&[&out[..], &["--name", "Ot/ter"]].concat()), 2, "a name of 1 to 32");
    bench.refused(
        &bench.node(&[&out[..], &["--sha256", &"0".repeat(64)]].concat()),
        1,
        "expected sha256 0000",
    );
    bench.refused(&bench.node(&["--disk", at(&bench.path("raspios.img"))]), 1, "expected a disk");

    bench.make_package("amd64");
    bench.refused(&bench.node(&out), 1, "expected a package for arm64");
    bench.make_package("armhf");
    bench.refused(&bench.node(&out), 1, "is for armhf, the image is not");
    bench.make_package("arm64");

    let image = fs::OpenOptions::new().write(true).open(bench.path("raspios.img")).unwrap();
    image.set_len(SIZE - MIB).unwrap();
    bench.refused(&bench.node(&out), 1, "truncated");
    image.set_len(BOOT_AT).unwrap();
    bench.refused(&bench.node(&out), 1, "truncated");
    image.set_len(0).unwrap();
    bench.refused(&bench.node(&out), 1, "partition table");
    bench.make_image("buster");
    bench.refused(&bench.node(&out), 1, "Bookworm or Trixie, got buster");
}

/// A loop device for a file; gone with this.
struct Card(String);

impl Card {
    fn insert(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show", at(file)]).output().ok()?;
        output.status.success().then(|| Self(text(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_card_is_written_and_read_back_or_refused() {
    let bench = Bench::new("trixie");
    let file = bench.path("card");
    fs::write(&file, vec![0xa5; (SIZE - MIB) as usize]).unwrap();
    let Some(small) = Card::insert(&file) else {
        eprintln!("SKIPPED: no loop device; run as root");
        return;
    };
    let untouched = || assert!(fs::read(&file).unwrap().iter().all(|byte| *byte == 0xa5));
    bench.refused(&bench.node(&["--disk", &small.0, "--yes"]), 1, "too small");
    untouched();
    drop(small);

    fs::write(&file, vec![0xa5; (SIZE + MIB) as usize]).unwrap();
    let card = Card::insert(&file).unwrap();
    // Nobody answers the question.
    bench.refused(&bench.node(&["--disk", &card.0]), 1, "nothing was written");
    untouched();
    let output = bench.node(&["--disk", &card.0, "--yes"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("written and read back"), "{}", text(&output.stderr));
    check_file_systems(&file);
    assert!(cat(&file, "/var/lib/cepa-flash/settings").contains("ROLE=node"));

    tool("mke2fs", &["-q", "-F", &card.0]);
    let mountpoint = bench.path("mnt");
    fs::create_dir(&mountpoint).unwrap();
    if Command::new("mount").args([&card.0, at(&mountpoint)]).status().unwrap().success() {
        let output = bench.node(&["--disk", &card.0, "--yes"]);
        tool("umount", &[at(&mountpoint)]);
        bench.refused(&output, 1, "is mounted");
        tool("e2fsck", &["-fn", at(&file)]);
    } else {
        eprintln!("SKIPPED: a mounted card; mounting is not allowed here");
    }
}
