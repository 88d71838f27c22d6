//! Creates a template: obtains and verifies the archive, unpacks it beside its place, prepares it, and moves it there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::accounts::{self, AgentUserName};
use crate::archive_file::ArchiveFile;
use crate::archive_path::ArchivePath;
use crate::digest::Digest;
use crate::download;
use crate::error::TemplateError;
use crate::input::Cancellation;
use crate::oci::Image;
use crate::staging::Staging;
use crate::target::Target;
use crate::tree::{Attributes, Tree};
use crate::unpack::{Counts, UnpackLimits, Unpacker};
use crate::zfs::DatasetName;

/// Mode of the root of a template, regardless of the archive: only its owner may write.
const ROOT_MODE: u32 = 0o755;
/// Directories that every template has, with their modes: mount points of devfs(5) and of Linux's proc(5), and /tmp.
const DIRECTORIES: [(&str, u32); 3] = [("dev", 0o555), ("proc", 0o555), ("tmp", 0o1777)];
/// Name of the copy of the archive in the private directory.
const ARCHIVE: &str = "archive";
/// Resolver configuration of host and template.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Maximum size of the host's resolver configuration, in bytes.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// Where an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveSource {
    /// A local file.
    File(PathBuf),
    /// An https URL.
    Url(String),
}

/// How to create a template.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The absolute path of the template. It does not exist, or is an empty directory.
    pub directory: PathBuf,
    /// The archive: a system in a tar archive, like FreeBSD's base.txz, or an OCI image layout in a tar archive.
    pub source: ArchiveSource,
    /// Digest of the archive; of an image also that of its index.json or manifest. Required unless the source is a local
    /// file with an image, which contains its digests.
    pub digest: Option<Digest>,
    /// User to create for agents, unless the archive contains it.
    pub user: Option<AgentUserName>,
    /// Directories to create as mount points.
    pub mount_points: Vec<ArchivePath>,
    /// Keep setuid and setgid bits.
    pub keep_setuid: bool,
    /// Copy the host's resolv.conf(5).
    pub resolv_conf: bool,
    /// Create this ZFS dataset, mount it at `directory`, and take a snapshot of the complete template.
    pub dataset: Option<DatasetName>,
    /// Limits of what the archive may unpack to.
    pub limits: UnpackLimits,
}

/// A step of [`init`], for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InitProgress<'a> {
    /// Bytes of the archive that were downloaded.
    Downloaded {
        /// Number of bytes.
        bytes: u64,
    },
    /// A local archive is copied to the private directory, and its digest is computed.
    Verifying {
        /// Path of the archive.
        archive: &'a str,
    },
    /// Bytes of an image's blobs that were verified.
    Verified {
        /// Number of bytes.
        bytes: u64,
    },
    /// Files and directories that were unpacked.
    Unpacked {
        /// Number of files and directories.
        entries: u64,
        /// Number of bytes in files.
        bytes: u64,
    },
    /// Users and directories are created.
    Preparing,
}

/// A created template.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct TemplateReport {
    /// The template, without symbolic links in its path.
    pub directory: PathBuf,
    /// Digest of the archive, or of the image's manifest if the archive was not compared with a digest.
    pub digest: Digest,
    /// Name of the image, if it has one.
    pub image: Option<String>,
    /// Operating system and architecture of the image, like `freebsd/amd64`.
    pub platform: Option<String>,
    /// Number of files and directories of the archive.
    pub entries: u64,
    /// Number of bytes in files.
    pub bytes: u64,
    /// Number of devices and FIFOs of the archive, which were not created.
    pub skipped_special: u64,
    /// Number of files whose setuid and setgid bits were removed.
    pub cleared_setuid: u64,
    /// Accounts that had an empty password and were locked.
    pub locked: Vec<String>,
    /// The user for agents.
    pub user: Option<String>,
    /// The snapshot of the template's dataset.
    pub snapshot: Option<String>,
}

/// Creates a template. Blocks until it is complete.
///
/// # Errors
/// See [`TemplateError`]. Nothing of the template is left; a staging directory that cannot be removed is removed by the next
/// call for the same directory.
pub fn init(
    options: &InitOptions,
    cancellation: &Cancellation,
    progress: &dyn Fn(InitProgress<'_>),
) -> Result<TemplateReport, TemplateError> {
    let context = Context {
        options,
        cancellation,
        progress,
        resolv_conf: options.resolv_conf.then(host_resolv_conf).transpose()?,
    };
    context.check_source()?;
    let target = Target::check(&options.directory)?;
    let staging = Staging::create(&target)?;
    let storage = Tree::new(
        staging
            .directory()
            .try_clone()
            .map_err(|error| TemplateError::file("open", staging.root_path())(error))?,
    );
    let archive = context.verified_archive(&storage)?;
    match &options.dataset {
        None => {
            let root = staging.create_root()?;
            let report = context.build(&archive, &target, root, &staging.root_path())?;
            staging.publish()?;
            Ok(report)
        }
        Some(dataset) => context.build_dataset(&archive, &target, dataset),
    }
}

/// The content of a template.
enum Content<'a> {
    /// A system in a tar archive.
    System(ArchiveFile),
    Image(Image<'a>),
}

/// A verified archive.
struct Archive<'a> {
    content: Content<'a>,
    digest: Digest,
}

struct Context<'a> {
    options: &'a InitOptions,
    cancellation: &'a Cancellation,
    progress: &'a dyn Fn(InitProgress<'_>),
    /// The host's resolver configuration, if it is copied.
    resolv_conf: Option<Vec<u8>>,
}

impl Context<'_> {
    /// Refuses what cannot succeed, before anything is created.
    fn check_source(&self) -> Result<(), TemplateError> {
        if let ArchiveSource::Url(url) = &self.options.source {
            download::check_url(url).map_err(|problem| TemplateError::Source {
                archive: url.clone(),
                problem,
            })?;
            if self.options.digest.is_none() {
                let archive = url.clone();
                return Err(TemplateError::NoDigest { archive });
            }
        }
        if cfg!(target_os = "freebsd") && !rustix::process::geteuid().is_root() {
            return Err(TemplateError::target(
                &self.options.directory,
                "only root can give files to other users, which a system needs; run the command as root",
            ));
        }
        Ok(())
    }

    /// Opens or downloads the archive, and compares it with the digest.
    fn verified_archive<'s>(&self, storage: &'s Tree) -> Result<Archive<'s>, TemplateError> {
        let file = self.obtain(storage)?;
        let of_file = file.digest();
        let of_other_file = match (self.options.digest, of_file) {
            (Some(expected), Some(found)) if expected != found => Some((expected, found)),
            _ => None,
        };
        let is_image = match file.is_image(self.cancellation) {
            // Not the archive that the caller expects: its defects do not matter.
            Err(TemplateError::Archive { .. } | TemplateError::Entry { .. })
                if of_other_file.is_some() =>
            {
                false
            }
            result => result?,
        };
        if !is_image && of_file.is_none() {
            let archive = file.name;
            return Err(TemplateError::NoDigest { archive });
        }
        if let Some((expected, found)) = of_other_file.filter(|_| !is_image) {
            return Err(TemplateError::DigestMismatch {
                what: file.name,
                expected,
                found,
            });
        }
        match of_file {
            Some(digest) if !is_image => Ok(Archive {
                content: Content::System(file),
                digest,
            }),
            _ => {
                let limits = self.options.limits;
                let image = Image::store(&file, storage, limits, self.cancellation, self.progress)?;
                if let Some((expected, found)) = of_other_file {
                    image.check_digest(expected, found)?;
                }
                let digest = self.options.digest.unwrap_or(image.manifest_digest());
                Ok(Archive {
                    content: Content::Image(image),
                    digest,
                })
            }
        }
    }

    /// Opens or downloads the archive.
    ///
    /// An archive with a digest is copied to the private directory: the owner of a local file could change it after the
    /// comparison. Without a digest only an image is accepted, whose blobs are verified as they are stored.
    fn obtain(&self, storage: &Tree) -> Result<ArchiveFile, TemplateError> {
        let max_bytes = self.options.limits.max_bytes;
        match &self.options.source {
            ArchiveSource::File(path) => {
                let file = ArchiveFile::open(path)?;
                if self.options.digest.is_none() {
                    return Ok(file);
                }
                (self.progress)(InitProgress::Verifying {
                    archive: &file.name,
                });
                let copy = ArchivePath::of_names(&[ARCHIVE]);
                file.copied(storage, &copy, max_bytes, self.cancellation)
            }
            ArchiveSource::Url(url) => {
                let mut file = storage.create_new(ARCHIVE)?;
                let digest = download::download(
                    url,
                    &mut file,
                    max_bytes,
                    self.cancellation,
                    self.progress,
                )?;
                Ok(ArchiveFile::downloaded(url, file, digest))
            }
        }
    }

    /// Unpacks the archive into an empty directory, and prepares it.
    fn build(
        &self,
        archive: &Archive<'_>,
        target: &Target,
        root: OwnedFd,
        path: &Path,
    ) -> Result<TemplateReport, TemplateError> {
        let tree = Tree::new(root);
        let options = self.options;
        let mut unpacker = Unpacker::new(
            &tree,
            options.keep_setuid,
            options.limits,
            self.cancellation,
            self.progress,
        );
        match &archive.content {
            Content::System(file) => unpacker.archive(file.decompressed()?, &file.name)?,
            Content::Image(image) => image.unpack(&mut unpacker)?,
        }
        let Counts {
            entries,
            bytes,
            skipped_special,
            cleared_setuid,
        } = unpacker.counts();
        (self.progress)(InitProgress::Preparing);
        let locked = accounts::prepare(&tree, path, options.user.as_ref())?;
        self.create_directories(&tree)?;
        if let Some(content) = &self.resolv_conf {
            let path = ArchivePath::of_names(&["etc", "resolv.conf"]);
            tree.write(&path, &owned_by_root(0o644), content)?;
        }
        self.cancellation.check()?;
        tree.directory(&ArchivePath::of_names(&[]), &owned_by_root(ROOT_MODE))?;
        let image = match &archive.content {
            Content::System(_) => None,
            Content::Image(image) => Some(image),
        };
        Ok(TemplateReport {
            directory: target.directory.clone(),
            digest: archive.digest,
            image: image.and_then(|image| image.reference.clone()),
            platform: image.and_then(|image| image.platform.clone()),
            entries,
            bytes,
            skipped_special,
            cleared_setuid,
            locked,
            user: options.user.as_ref().map(ToString::to_string),
            snapshot: options.dataset.as_ref().map(DatasetName::snapshot),
        })
    }

    /// Creates a dataset at the path of the template, builds the template in it, and takes its snapshot. Destroys the dataset
    /// on an error.
    fn build_dataset(
        &self,
        archive: &Archive<'_>,
        target: &Target,
        dataset: &DatasetName,
    ) -> Result<TemplateReport, TemplateError> {
        let create = dataset.create_command(&target.directory);
        let create = create.map_err(|problem| TemplateError::target(&target.directory, problem))?;
        create.run()?;
        let built = open_mount_point(target)
            .and_then(|root| self.build(archive, target, root, &target.directory))
            .and_then(|report| dataset.snapshot_command().run().map(|()| report));
        built.map_err(|error| match dataset.destroy_command().run() {
            Ok(()) => error,
            Err(destroy) => {
                TemplateError::prepare(format!("{error}; dataset {dataset} is left: {destroy}"))
            }
        })
    }

    fn create_directories(&self, tree: &Tree) -> Result<(), TemplateError> {
        let fixed = DIRECTORIES.map(|(name, mode)| (ArchivePath::of_names(&[name]), mode));
        let mount_points = self
            .options
            .mount_points
            .iter()
            .map(|path| (path.clone(), 0o755));
        for (path, mode) in fixed.into_iter().chain(mount_points) {
            match tree.kind(&path)? {
                Some(FileType::Directory) => {}
                None => tree.directory(&path, &owned_by_root(mode))?,
                Some(_) => {
                    return Err(TemplateError::prepare(format!(
                        "{path} must be a directory, but the archive contains something else; use another archive or mount point"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn owned_by_root(mode: u32) -> Attributes {
    Attributes {
        mode,
        owner: rustix::process::geteuid().is_root().then_some((0, 0)),
        mtime: None,
    }
}

/// Returns the content of the host's resolver configuration.
fn host_resolv_conf() -> Result<Vec<u8>, TemplateError> {
    let content = colibri_sys::regular_file::read(Path::new(RESOLV_CONF), MAX_RESOLV_CONF);
    content.map_err(|error| {
        TemplateError::prepare(format!(
            "{RESOLV_CONF} of the host cannot be copied: {error}; create it, or omit --resolv-conf"
        ))
    })
}

/// Opens the root of a mounted dataset, and makes it private until it is complete.
fn open_mount_point(target: &Target) -> Result<OwnedFd, TemplateError> {
    let open = || -> Result<OwnedFd, rustix::io::Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&target.parent, &target.name, flags, Mode::empty())?;
        rustix::fs::fchmod(&root, Mode::RWXU)?;
        Ok(root)
    };
    let root = open().map_err(TemplateError::file("open", &target.directory))?;
    let device = |directory: &OwnedFd| {
        let stat = rustix::fs::fstat(directory);
        stat.map(|stat| stat.st_dev)
            .map_err(TemplateError::file("examine", &target.directory))
    };
    match device(&root)? == device(&target.parent)? {
        false => Ok(root),
        true => Err(TemplateError::target(
            &target.directory,
            "zfs(8) did not mount the dataset there; check the property canmount of its parent",
        )),
    }
}
