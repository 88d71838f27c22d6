//! Templates from real archives: systems, images with layers, attacks, and interrupted runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use colibri_template::{
    ArchiveSource, Cancellation, Digest, InitOptions, InitProgress, TemplateError, TemplateReport,
    UnpackLimits, init,
};
use tar::{EntryType, Header};

/// A directory of a test. Other users cannot change its parents.
struct Fixture {
    dir: tempfile::TempDir,
}

/// Writes entries of an archive without the checks of `tar::Builder`.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", 0o644, content.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::default();
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Returns an image layout whose blobs are named by `name_of`.
fn image_named(layers: &[Vec<u8>], name_of: impl Fn(&[u8]) -> String) -> Vec<u8> {
    let mut blobs = BTreeMap::new();
    let mut add = |media_type: &str, bytes: &[u8]| {
        blobs.insert(name_of(bytes), bytes.to_vec());
        let digest = format!("sha256:{}", name_of(bytes));
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let config =
        br#"{"architecture":"amd64","os":"freebsd","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = add("application/vnd.oci.image.config.v1+json", config);
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let suffix = match layer.first() {
                Some(0x1f) => "+gzip",
                Some(0x28) => "+zstd",
                _ => "",
            };
            add(
                &format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                layer,
            )
        })
        .collect();
    let manifest =
        serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let mut manifest = add(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    manifest["annotations"] =
        serde_json::json!({"org.opencontainers.image.ref.name": "freebsd-test:15"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    // In the order of FreeBSD's make-oci-image.sh: bsdtar adds the directory as "./".
    let mut archive = Archive::default()
        .dir("./")
        .dir("./blobs/")
        .dir("./blobs/sha256/");
    for (name, bytes) in &blobs {
        archive = archive.entry(
            EntryType::Regular,
            &format!("./blobs/sha256/{name}"),
            "",
            0o644,
            bytes,
        );
    }
    archive
        .file("./oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#)
        .file("./index.json", &index)
        .finish()
}

fn image(layers: &[Vec<u8>]) -> Vec<u8> {
    image_named(layers, |bytes| Digest::of(bytes).hex())
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("outside"), "unchanged").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn root(&self, name: &str) -> PathBuf {
        self.path("jail").join(name)
    }

    /// Returns the options for an archive of a system, with its digest.
    fn options(&self, archive: &[u8]) -> InitOptions {
        let file = self.path("archive");
        fs::write(&file, archive).unwrap();
        InitOptions {
            directory: self.path("jail"),
            source: ArchiveSource::File(file),
            digest: Some(Digest::of(archive)),
            user: None,
            mount_points: Vec::new(),
            keep_setuid: false,
            resolv_conf: false,
            dataset: None,
            limits: UnpackLimits::default(),
        }
    }

    fn init(&self, archive: &[u8]) -> Result<TemplateReport, TemplateError> {
        run(&self.options(archive))
    }

    fn init_image(&self, image: &[u8]) -> Result<TemplateReport, TemplateError> {
        let mut options = self.options(image);
        options.digest = None;
        run(&options)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        self.root(name).symlink_metadata().unwrap().mode() & 0o7777
    }

    /// Returns the names in the fixture's directory.
    fn names(&self) -> Vec<String> {
        names(self.dir.path())
    }

    /// Asserts that an archive is refused, that nothing of it is left, and that nothing outside changed.
    #[track_caller]
    fn refuses(&self, archive: &[u8], problem: &str) {
        let before = names(Path::new("/tmp"));
        let error = match self.init(archive) {
            Ok(report) => panic!("accepted, not refused as {problem:?}: {report:?}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(problem), "not {problem:?}: {error}");
        assert_eq!(self.names(), ["archive", "outside"], "{error}");
        assert_eq!(
            fs::read_to_string(self.path("outside")).unwrap(),
            "unchanged"
        );
        let escaped = names(Path::new("/tmp"))
            .into_iter()
            .filter(|name| !before.contains(name));
        assert_eq!(
            escaped
                .filter(|name| name.contains("colibri-escape"))
                .count(),
            0
        );
    }
}

fn run(options: &InitOptions) -> Result<TemplateReport, TemplateError> {
    init(options, &Cancellation::default(), &|_| {})
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A small system as an archive.
fn system() -> Archive {
    Archive::default()
        .dir("./")
        .dir("./etc/")
        .file("./etc/passwd", "root::0:0::/root:/bin/sh\n")
        .file("./etc/group", "wheel:x:0:\n")
        .file("./etc/shadow", "root::19000::::::\n")
        .entry(EntryType::Directory, "./tmp", "", 0o1777, b"")
        .entry(EntryType::Directory, "./var/empty", "", 0o555, b"")
        .entry(EntryType::Regular, "./bin/su", "", 0o4755, b"su")
        .entry(EntryType::Regular, "./bin/sh", "", 0o755, b"sh")
        .link("./bin/ash", "./bin/sh")
        .symlink("./lib", "usr/lib")
        .symlink("./escape", "/etc/passwd")
        .entry(EntryType::Fifo, "./dev/fifo", "", 0o666, b"")
        .entry(EntryType::Char, "./dev/null", "", 0o666, b"")
}

#[test]
fn system_is_unpacked_from_every_compression() {
    let archive = system().finish();
    for archive in [
        archive.clone(),
        xz(&archive),
        gzip(&archive),
        zstd(&archive),
    ] {
        let fixture = Fixture::new();
        let report = fixture.init(&archive).unwrap();
        assert_eq!(
            (
                report.entries,
                report.skipped_special,
                report.cleared_setuid
            ),
            (14, 2, 1)
        );
        assert_eq!(report.digest, Digest::of(&archive));
        assert_eq!(report.directory, fixture.path("jail"));
        assert_eq!(names(&fixture.root("dev")), [] as [&str; 0]);
        assert_eq!(fixture.mode("bin/su"), 0o755, "setuid is removed");
        assert_eq!(fixture.mode("tmp"), 0o1777);
        assert_eq!(fixture.mode("."), 0o755);
        assert_eq!(
            fs::read_link(fixture.root("escape")).unwrap(),
            Path::new("/etc/passwd")
        );
        let sh = fixture.root("bin/sh").metadata().unwrap();
        assert_eq!((sh.nlink(), sh.mtime()), (2, 1_700_000_000));
        assert_eq!(fixture.names(), ["archive", "jail", "outside"]);
    }
}

#[test]
fn setuid_bits_are_kept_on_request() {
    let fixture = Fixture::new();
    let mut options = fixture.options(&system().finish());
    options.keep_setuid = true;
    assert_eq!(run(&options).unwrap().cleared_setuid, 0);
    assert_eq!(fixture.mode("bin/su"), 0o4755);
}

#[test]
fn owners_of_the_archive_are_kept_for_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can set owners");
        return;
    }
    let fixture = Fixture::new();
    let mut archive = Archive::default();
    for (name, kind, size) in [
        ("file", EntryType::Regular, 0),
        ("link", EntryType::Symlink, 0),
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_link_name("target").unwrap();
        header.set_mode(0o2755);
        header.set_uid(1234);
        header.set_gid(567);
        header.set_size(size);
        header.set_cksum();
        archive.0.extend(header.as_bytes());
    }
    let mut options = fixture.options(&archive.finish());
    options.keep_setuid = true;
    run(&options).unwrap();
    for name in ["file", "link"] {
        let metadata = fixture.root(name).symlink_metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 567), "{name}");
    }
    assert_eq!(fixture.mode("file"), 0o2755);
}

#[test]
fn long_names_of_gnu_and_pax_are_read() {
    let fixture = Fixture::new();
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    builder
        .append_data(&mut header, &name, &b"gnu"[..])
        .unwrap();
    builder
        .append_pax_extensions([("path", b"pax/\xc3\xa4".as_slice())])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_path("short").unwrap();
    header.set_cksum();
    builder.append(&header, &b"pax"[..]).unwrap();
    fixture.init(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(fixture.read(&name), "gnu");
    assert_eq!(fixture.read("pax/ä"), "pax");
}

#[test]
fn layers_are_applied_with_whiteouts() {
    let lower = system()
        .file("etc/removed", "lower")
        .file("etc/kept", "lower")
        .file("etc/replaced", "lower")
        .file("opaque/a", "lower")
        .file("opaque/sub/b", "lower")
        .file("tree/a/b/c", "lower")
        .file("becomes-file/x", "lower")
        .symlink("becomes-dir", "etc")
        .file(
            ".wh.kept-name",
            "a whiteout in the first layer removes nothing",
        );
    // The whiteouts follow the files of their layer, which they must not remove.
    let upper = Archive::default()
        .file("etc/replaced", "upper")
        .file("opaque/new", "upper")
        .file("opaque/sub/new", "upper")
        .file("tree", "upper")
        .file("becomes-file", "upper")
        .dir("becomes-dir")
        .file("becomes-dir/x", "upper")
        .file("etc/.wh.removed", "")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.tree", "")
        .file(".wh.absent", "")
        .file("no/such/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "");
    let third = Archive::default().file("etc/removed", "third").finish();
    let fixture = Fixture::new();
    let layers = [gzip(&lower.finish()), zstd(&upper.finish()), third];
    let report = fixture.init_image(&xz(&image(&layers))).unwrap();
    assert_eq!(report.image.as_deref(), Some("freebsd-test:15"));
    assert_eq!(report.platform.as_deref(), Some("freebsd/amd64"));
    for (name, content) in [
        ("etc/kept", "lower"),
        ("etc/replaced", "upper"),
        ("etc/removed", "third"),
        ("opaque/new", "upper"),
        ("opaque/sub/new", "upper"),
        ("tree", "upper"),
        ("becomes-file", "upper"),
        ("becomes-dir/x", "upper"),
    ] {
        assert_eq!(fixture.read(name), content, "{name}");
    }
    assert_eq!(names(&fixture.root("opaque")), ["new", "sub"]);
    assert_eq!(names(&fixture.root("opaque/sub")), ["new"]);
    let whiteouts = names(&fixture.root("."))
        .into_iter()
        .filter(|name| name.starts_with(".wh."));
    assert_eq!(whiteouts.count(), 0);
}

#[test]
fn image_digest_may_be_that_of_file_index_or_manifest() {
    let layer = gzip(&Archive::default().file("a", "a").finish());
    let image = image(&[layer]);
    let fixture = Fixture::new();
    let manifest = fixture.init_image(&image).unwrap().digest;
    let inside = image
        .windows(12)
        .position(|part| part == b"\"manifests\":")
        .unwrap();
    // The content of a file follows zeros.
    let start = 1 + image[..inside].iter().rposition(|byte| *byte == 0).unwrap();
    let length = image[start..].iter().position(|byte| *byte == 0).unwrap();
    let index = Digest::of(&image[start..start + length]);
    for digest in [manifest, index, Digest::of(&image)] {
        let fixture = Fixture::new();
        let mut options = fixture.options(&image);
        options.digest = Some(digest);
        assert_eq!(run(&options).unwrap().digest, digest);
    }
    let fixture = Fixture::new();
    let mut options = fixture.options(&image);
    options.digest = Some(Digest::of(b"other"));
    let error = run(&options).unwrap_err().to_string();
    assert!(error.contains("its digest is sha256:"), "{error}");
    assert_eq!(fixture.names(), ["archive", "outside"]);
}

#[test]
fn blob_with_another_digest_is_refused() {
    let layer = gzip(&Archive::default().file("a", "a").finish());
    let wrong = image_named(std::slice::from_ref(&layer), |bytes| {
        Digest::of(&bytes[..bytes.len() / 2]).hex()
    });
    let fixture = Fixture::new();
    let error = fixture.init_image(&wrong).unwrap_err();
    assert!(
        matches!(error, TemplateError::DigestMismatch { .. }),
        "{error}"
    );
    let traversal = image_named(&[layer], |_| "../../../outside".to_owned());
    let error = fixture.init_image(&traversal).unwrap_err().to_string();
    assert!(error.contains("\"..\""), "{error}");
    assert_eq!(
        fs::read_to_string(fixture.path("outside")).unwrap(),
        "unchanged"
    );
    assert_eq!(fixture.names(), ["archive", "outside"]);
}

/// Overwrites bytes of the archive of the fixture in place, as its owner can.
fn overwrite(fixture: &Fixture, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(fixture.path("archive")).unwrap();
    let at = bytes.windows(from.len()).position(|part| part == from);
    let at = at.unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    let mut file = fs::File::options();
    let mut file = file.write(true).open(fixture.path("archive")).unwrap();
    file.write_all(&bytes).unwrap();
}

/// The large entries are longer than all read buffers together.
#[test]
fn archive_that_changes_after_its_digest_is_not_used() {
    let large = vec![7; 1 << 20];
    let system = Archive::default()
        .file("first", "")
        .entry(EntryType::Regular, "large", "", 0o644, &large)
        .file("last", "published");
    let layers = [8, 9].map(|byte| {
        let content = vec![byte; 1 << 20];
        let layer = Archive::default().entry(EntryType::Regular, "large", "", 0o644, &content);
        layer.finish()
    });
    let published: [(Vec<u8>, &[u8], &[u8]); 2] = [
        (system.finish(), b"published", b"malicious"),
        (image(&layers), b"freebsd-test:15", b"freebsd-evil:15"),
    ];
    for (archive, from, to) in published {
        let fixture = Fixture::new();
        let options = fixture.options(&archive);
        let is_changed = Cell::new(false);
        let report = init(&options, &Cancellation::default(), &|progress| {
            let is_read = matches!(
                progress,
                InitProgress::Unpacked { .. } | InitProgress::Verified { .. }
            );
            if is_read && !is_changed.replace(true) {
                overwrite(&fixture, from, to);
            }
        });
        let report = report.unwrap();
        assert!(is_changed.get() && report.digest == Digest::of(&archive));
        match report.image {
            Some(name) => assert_eq!(name, "freebsd-test:15"),
            None => assert_eq!(fixture.read("last"), "published"),
        }
    }
}

#[test]
fn incomplete_image_is_refused() {
    let layer = gzip(&Archive::default().file("a", "a").finish());
    let whole = image(&[layer]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let fixture = Fixture::new();
    for (archive, problem) in [
        (Archive::default().file("oci-layout", "{}").finish(), "has no index.json"),
        (Archive::default().file("index.json", "{").finish(), "index.json is invalid"),
        (
            Archive::default().file("index.json", r#"{"manifests":[]}"#).finish(),
            "contains 0 images",
        ),
        (
            Archive::default()
                .file(
                    "index.json",
                    &format!(
                        r#"{{"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":1}}]}}"#,
                        Digest::of(b"absent")
                    ),
                )
                .finish(),
            "does not contain the blob",
        ),
        (Archive::default().symlink("blobs", "..").file("index.json", "{}").finish(), "invalid"),
        (
            Archive::default().file("blobs/sha256/x", "").finish(),
            "64 hexadecimal digits",
        ),
        (whole[..whole.len() / 2].to_vec(), ""),
    ] {
        let error = fixture.init_image(&archive).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem}: {error} {}", text(&archive).len());
        assert_eq!(fixture.names(), ["archive", "outside"]);
    }
}

#[test]
fn archive_without_digest_is_refused() {
    let fixture = Fixture::new();
    let mut options = fixture.options(&system().finish());
    options.digest = None;
    let error = run(&options).unwrap_err();
    assert!(matches!(error, TemplateError::NoDigest { .. }), "{error}");
    options.source = ArchiveSource::Url("https://download.invalid/image.txz".to_owned());
    let error = run(&options).unwrap_err();
    assert!(matches!(error, TemplateError::NoDigest { .. }), "{error}");
    assert_eq!(fixture.names(), ["archive", "outside"]);
}

#[test]
fn changed_archive_is_refused_before_unpacking() {
    let fixture = Fixture::new();
    let archive = Archive::default().file("a", "sss").finish();
    let options = fixture.options(&archive);
    let mut changed = archive;
    let content = changed.iter().rposition(|byte| *byte == b's').unwrap();
    changed[content] ^= 1;
    fs::write(fixture.path("archive"), changed).unwrap();
    let unpacked = Cell::new(false);
    let result = init(&options, &Cancellation::default(), &|progress| {
        unpacked.set(unpacked.get() || matches!(progress, InitProgress::Unpacked { .. }));
    });
    assert!(
        matches!(result, Err(TemplateError::DigestMismatch { .. })),
        "{result:?}"
    );
    assert!(!unpacked.get());
    fs::write(fixture.path("archive"), "<html>Not found</html>").unwrap();
    let error = run(&options).unwrap_err();
    assert!(
        matches!(error, TemplateError::DigestMismatch { .. }),
        "{error}"
    );
    assert_eq!(fixture.names(), ["archive", "outside"]);
}

#[test]
fn paths_out_of_the_directory_are_refused() {
    let fixture = Fixture::new();
    let archive = |name: &str| {
        Archive::default()
            .file("a", "")
            .file(name, "escaped")
            .finish()
    };
    fixture.refuses(&archive("/tmp/colibri-escape"), "absolute");
    fixture.refuses(&archive("../outside"), "\"..\"");
    fixture.refuses(&archive("a/../../outside"), "\"..\"");
    fixture.refuses(&archive("./../../../tmp/colibri-escape"), "\"..\"");
    fixture.refuses(&Archive::default().dir("..").finish(), "\"..\"");
    fixture.refuses(&archive(".."), "\"..\"");
}

#[test]
fn entries_below_symbolic_links_are_refused() {
    let fixture = Fixture::new();
    let outside = fixture.path("").display().to_string();
    for target in [outside.as_str(), "..", "../..", "."] {
        let below = |archive: Archive| {
            fixture.refuses(&archive.finish(), "\"l\" in it is not a directory");
        };
        let link = || Archive::default().symlink("l", target);
        below(link().file("l/outside", "escaped"));
        below(link().dir("l/new/"));
        below(link().symlink("l/new", "x"));
        below(link().file("a", "").link("l/new", "a"));
        below(
            Archive::default()
                .symlink("d/l", target)
                .file("d/l/x/y", "escaped"),
        );
        // The link replaces a directory that had files.
        below(
            Archive::default()
                .file("l/a", "")
                .symlink("l", target)
                .file("l/outside", "escaped"),
        );
    }
}

#[test]
fn file_over_a_symbolic_link_replaces_the_link() {
    let fixture = Fixture::new();
    let outside = fixture.path("outside").display().to_string();
    let archive = Archive::default()
        .symlink("file", &outside)
        .file("file", "inside")
        .symlink("dir", &fixture.path("").display().to_string())
        .dir("dir")
        .file("dir/outside", "inside");
    fixture.init(&archive.finish()).unwrap();
    assert_eq!(fixture.read("file"), "inside");
    assert_eq!(fixture.read("dir/outside"), "inside");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "unchanged");
}

#[test]
fn hard_links_out_of_the_directory_are_refused() {
    let fixture = Fixture::new();
    let outside = fixture.path("outside").display().to_string();
    let archive = |target: &str| Archive::default().link("l", target).finish();
    fixture.refuses(&archive(&outside), "absolute");
    fixture.refuses(&archive("../../outside"), "\"..\"");
    fixture.refuses(&archive("absent"), "does not exist");
    fixture.refuses(&archive("l"), "cannot link");
    fixture.refuses(
        &Archive::default().dir("d").link("l", "d").finish(),
        "not a file",
    );
    let through = Archive::default().symlink("s", &fixture.path("").display().to_string());
    fixture.refuses(&through.link("l", "s/outside").finish(), "not a directory");
    // A hard link to a symbolic link is the symbolic link, not its target.
    let chain = Archive::default()
        .symlink("s", &outside)
        .link("l", "s")
        .file("l", "inside");
    fixture.init(&chain.finish()).unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "unchanged");
    assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1);
}

#[test]
fn whiteouts_do_not_leave_the_directory() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("victim")).unwrap();
    fs::write(fixture.path("victim/file"), "").unwrap();
    let lower = || {
        gzip(
            &Archive::default()
                .symlink("l", &fixture.path("victim").display().to_string())
                .finish(),
        )
    };
    for name in [
        "l/.wh.file",
        "l/.wh..wh..opq",
        ".wh...",
        ".wh..",
        ".wh.",
        "x/../.wh.victim",
    ] {
        let upper = gzip(&Archive::default().file(name, "").finish());
        let result = fixture.init_image(&image(&[lower(), upper]));
        // An opaque whiteout of a link hides nothing.
        assert!(
            result.is_err() || name.ends_with(".opq"),
            "{name}: {result:?}"
        );
        assert_eq!(names(&fixture.path("victim")), ["file"], "{name}");
        let _ = fs::remove_dir_all(fixture.path("jail"));
    }
    // The whiteout of a link removes the link, not what it names.
    let upper = gzip(&Archive::default().file(".wh.l", "").finish());
    fixture.init_image(&image(&[lower(), upper])).unwrap();
    assert!(fixture.root("l").symlink_metadata().is_err());
    assert_eq!(names(&fixture.path("victim")), ["file"]);
}

#[test]
fn bombs_are_refused() {
    let fixture = Fixture::new();
    let zeros = vec![0; 8 << 20];
    let bomb = Archive::default()
        .entry(EntryType::Regular, "bomb", "", 0o644, &zeros)
        .finish();
    let compressed = [gzip(&bomb), zstd(&bomb), xz(&bomb)];
    for archive in &compressed {
        let mut options = fixture.options(archive);
        options.limits.max_bytes = 1 << 20;
        let error = run(&options).unwrap_err();
        assert!(
            matches!(error, TemplateError::TooLarge { limit: 0x10_0000 }),
            "{error}"
        );
        options.source = ArchiveSource::File(fixture.path("image"));
        let packed = image(std::slice::from_ref(archive));
        fs::write(fixture.path("image"), &packed).unwrap();
        options.digest = Some(Digest::of(&packed));
        let error = run(&options).unwrap_err();
        assert!(matches!(error, TemplateError::TooLarge { .. }), "{error}");
        fs::remove_file(fixture.path("image")).unwrap();
    }
    let many = (0..200)
        .fold(Archive::default(), |archive, n| {
            archive.file(&format!("f{n}"), "")
        })
        .finish();
    let mut options = fixture.options(&many);
    options.limits.max_entries = 100;
    let error = run(&options).unwrap_err();
    assert!(
        matches!(error, TemplateError::TooManyEntries { limit: 100 }),
        "{error}"
    );
    let deep = "d/".repeat(48) + "f";
    let pax = format!("{} path={}\n", 10 + 200 * 2, "d/".repeat(200));
    assert_eq!(pax.len(), 410);
    let nested = Archive::default()
        .file(&deep, "")
        .entry(EntryType::XHeader, "x", "", 0, pax.as_bytes())
        .file("x", "");
    fixture.refuses(&nested.finish(), "more than 128 components");
    assert_eq!(fixture.names(), ["archive", "outside"]);
}

#[test]
fn sparse_and_unknown_entries_are_refused() {
    let fixture = Fixture::new();
    for (kind, problem) in [
        (
            EntryType::GNUSparse,
            "it is sparse, which is not supported; use another archive",
        ),
        (EntryType::new(b'V'), "type 'V' is not supported"),
        (EntryType::new(b'M'), "type 'M' is not supported"),
    ] {
        fixture.refuses(
            &Archive::default().entry(kind, "a", "", 0o644, b"").finish(),
            problem,
        );
    }
    let content = Archive::default().entry(EntryType::Symlink, "a", "b", 0o644, b"content");
    fixture.refuses(&content.finish(), "has content, but is not a file");
    fixture.refuses(
        &Archive::default().symlink("a", "").finish(),
        "without a target",
    );
    fixture.refuses(b"not an archive", "ends without an end marker");
    fixture.refuses(&[1; 512], "wrong checksum");
    fixture.refuses(&[0; 1024], "it is empty");
}

#[test]
fn cancelled_run_leaves_nothing() {
    let archive = (0..50)
        .fold(Archive::default(), |archive, n| {
            archive.file(&format!("d{n}/f"), "x")
        })
        .finish();
    let packed = image(&[gzip(&archive)]);
    for (bytes, digest) in [(&archive, Some(Digest::of(&archive))), (&packed, None)] {
        let fixture = Fixture::new();
        let mut options = fixture.options(bytes);
        options.digest = digest;
        let cancellation = Cancellation::default();
        let steps = Cell::new(0);
        let result = init(&options, &cancellation, &|progress| {
            steps.set(steps.get() + 1);
            if matches!(progress, InitProgress::Unpacked { entries: 20, .. }) {
                assert!(
                    fixture
                        .names()
                        .iter()
                        .any(|name| name.starts_with(".jail.colibri-init."))
                );
                cancellation.cancel();
            }
        });
        assert!(
            matches!(result, Err(TemplateError::Cancelled)),
            "{result:?}"
        );
        assert!(steps.get() >= 20);
        assert_eq!(fixture.names(), ["archive", "outside"]);
    }
}

#[test]
fn staging_of_a_killed_run_is_removed_by_the_next() {
    let fixture = Fixture::new();
    let archive = Archive::default().file("a", "a").finish();
    let stale = fixture.path(".jail.colibri-init.1");
    let other = fixture.path(".other.colibri-init.1");
    let running = fixture.path(".jail.colibri-init.2");
    for directory in [&stale, &other, &running] {
        fs::create_dir_all(directory.join("root/sub")).unwrap();
    }
    symlink(fixture.path("outside"), stale.join("root/link")).unwrap();
    symlink(
        fixture.path("other"),
        fixture.path(".jail.colibri-init.link"),
    )
    .unwrap();
    let lock = fs::File::open(&running).unwrap();
    lock.lock().unwrap();
    fixture.init(&archive).unwrap();
    let left = fixture.names();
    let expected = [
        ".jail.colibri-init.2",
        ".jail.colibri-init.link",
        ".other.colibri-init.1",
        "archive",
        "jail",
        "outside",
    ];
    assert_eq!(left, expected);
}

#[test]
fn directory_that_is_used_is_refused() {
    let fixture = Fixture::new();
    let archive = Archive::default().file("a", "a").finish();
    let jail = fixture.path("jail");
    fs::create_dir(&jail).unwrap();
    fixture.init(&archive).unwrap();
    let error = fixture.init(&archive).unwrap_err().to_string();
    assert!(error.contains("it is not empty"), "{error}");
    assert_eq!(fixture.read("a"), "a");
    fs::remove_dir_all(&jail).unwrap();
    symlink("/nonexistent", &jail).unwrap();
    let error = fixture.init(&archive).unwrap_err().to_string();
    assert!(error.contains("not a directory"), "{error}");
    let mut options = fixture.options(&archive);
    options.directory = fixture.path("no/jail");
    let error = run(&options).unwrap_err().to_string();
    assert!(error.contains("mkdir -p"), "{error}");
    if rustix::process::geteuid().is_root() {
        let shared = fixture.path("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
        options.directory = shared.join("jail");
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains("can be changed by other users"), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn system_of_text_files_is_prepared() {
    let fixture = Fixture::new();
    let mut options = fixture.options(&system().finish());
    options.user = Some("agent".parse().unwrap());
    options.mount_points = vec!["/work/project".parse().unwrap(), "/tmp".parse().unwrap()];
    options.resolv_conf = true;
    let report = run(&options).unwrap();
    assert_eq!(report.locked, ["root", "root"]);
    assert_eq!(
        fixture.read("etc/passwd"),
        "root:*:0:0::/root:/bin/sh\nagent:x:1000:1000:Colibri agents:/home/agent:/bin/sh\n"
    );
    assert_eq!(fixture.read("etc/group"), "wheel:x:0:\nagent:x:1000:\n");
    assert_eq!(
        fixture.read("etc/shadow"),
        "root:*:19000::::::\nagent:*:::::::\n"
    );
    for name in ["work/project", "home/agent", "dev", "proc", "tmp"] {
        assert!(fixture.root(name).is_dir(), "{name}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(fixture.root("home/agent").metadata().unwrap().uid(), 1000);
    }
    let host = fs::read("/etc/resolv.conf").unwrap();
    assert_eq!(fs::read(fixture.root("etc/resolv.conf")).unwrap(), host);
}

/// The links lead to a directory of the test, never to the host: a broken check must not change the host's users.
#[cfg(target_os = "linux")]
#[test]
fn preparation_does_not_follow_links() {
    let victim_of = |fixture: &Fixture| {
        let victim = fixture.path("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("passwd"), "root::0:0::/root:/bin/sh\n").unwrap();
        victim
    };
    for (link, target, problem) in [
        ("etc", "victim", "not a directory"),
        ("etc/passwd", "victim/passwd", "etc/passwd"),
        ("home", "victim", "not a directory"),
        ("dev", "victim", "must be a directory"),
        ("work", "victim", "not a directory"),
    ] {
        let fixture = Fixture::new();
        let victim = victim_of(&fixture);
        let target = fixture.path(target).display().to_string();
        let mut options = fixture.options(&Archive::default().symlink(link, &target).finish());
        options.user = Some("agent".parse().unwrap());
        options.mount_points = vec!["/work/new".parse().unwrap()];
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem}: {error}");
        assert_eq!(names(&victim), ["passwd"], "{link}");
        let passwd = fs::read_to_string(victim.join("passwd")).unwrap();
        assert_eq!(passwd, "root::0:0::/root:/bin/sh\n", "{link}");
        assert_eq!(fixture.names(), ["archive", "outside", "victim"]);
    }
    let fixture = Fixture::new();
    let victim = victim_of(&fixture).join("new");
    let link = Archive::default().symlink("etc/resolv.conf", &victim.display().to_string());
    let mut options = fixture.options(&link.finish());
    options.resolv_conf = true;
    run(&options).unwrap();
    let copied = fixture.root("etc/resolv.conf").symlink_metadata().unwrap();
    assert!(copied.is_file() && !victim.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn system_that_cannot_be_prepared_is_refused() {
    for (archive, problem) in [
        (
            Archive::default().file("etc/master.passwd", "root::0:0::0:0::/:\n"),
            "on FreeBSD",
        ),
        (Archive::default().dir("home/agent"), "no user agent"),
        (
            Archive::default().file("etc/passwd", "agent:x:0:1000::/root:/bin/sh\n"),
            "user agent has uid \"0\"",
        ),
        (Archive::default().file("dev", ""), "must be a directory"),
    ] {
        let fixture = Fixture::new();
        let mut options = fixture.options(&archive.finish());
        options.user = Some("agent".parse().unwrap());
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains(problem), "{problem}: {error}");
        assert_eq!(fixture.names(), ["archive", "outside"]);
    }
}
