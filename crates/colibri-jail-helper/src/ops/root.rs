//! The root directory that the monitor prepares for one jail: a clone of a ZFS template, or a read-only view of a template
//! directory with private writable directories, and device files.
//!
//! A directory in `/var/run/colibri-roots` with the jail's name is the mount point of the root, and the record that this
//! program mounted something for the jail. It is created first and removed last.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use colibri_jail_core::{JAIL_ROOTS, JailName, JailPath};

use super::monitor::{CLEANUP_TIMEOUT, list_mounts, unmount_all};
use super::mounts::{self, OpenedPath, mount_in};
use crate::error::HelperError;
use crate::request::{MountRequest, RootBase, RootRequest};
use crate::safe_open::{self, OpenError, Trust};
use crate::sys::{self, MountPoint};
use crate::zfs::ZfsClone;

/// Rulesets of devfs(8), in order of preference: that of packaging/freebsd/devfs.rules, and `devfsrules_jail` of FreeBSD.
const RULESETS: [&str; 2] = ["70", "4"];
/// Devices that give control of the host. They exist on every host, and no ruleset for jails shows them.
const HOST_DEVICES: [&str; 4] = ["mem", "kmem", "devctl", "geom.ctl"];
/// Maximum size of a private directory. It is memory or swap space.
const WRITABLE_SIZE: &str = "1g";
/// Maximum size of `/var/run`, which contains pid files and sockets.
const RUN_SIZE: &str = "64m";

/// The root directory of one jail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JailRoot<'a> {
    pub(super) jail: &'a JailName,
    pub(super) request: &'a RootRequest,
    pub(super) mounts: &'a [MountRequest],
}

impl JailRoot<'_> {
    /// Makes or extends the root. What an earlier run left is removed before.
    pub(crate) fn prepare(&self) -> Result<(), HelperError> {
        self.try_prepare()
            .map_err(|problem| HelperError::Root(self.jail.to_string(), problem))
    }

    fn try_prepare(&self) -> Result<(), String> {
        let deadline = Instant::now() + CLEANUP_TIMEOUT;
        mounts::remove_all(self.jail, deadline)?;
        self.remove(deadline)?;
        if let RootBase::Existing(_) = self.request.base {
            self.refuse_mounted()?;
        }
        let roots = safe_open::fixed_path(JAIL_ROOTS).map_err(text)?;
        let roots = safe_open::private_directory(&roots).map_err(text)?;
        sys::make_directory_at(&roots, self.jail.as_str(), 0o755)
            .map_err(|error| format!("cannot create {}: {error}", self.record()))?;
        if let RootBase::Template(template) = &self.request.base {
            self.populate(template)?;
        }
        if let Some(inside) = &self.request.devfs {
            self.mount_devfs(inside)?;
        }
        if let Some(inside) = &self.request.fdescfs {
            self.mount_device_files(inside, "fdescfs", &[("linrdlnk", "")])?;
        }
        mounts::mount_all(self.jail, &self.path(), self.mounts)
    }

    /// Removes everything that [`JailRoot::prepare`] made. Nothing is not an error.
    pub(crate) fn remove(&self, deadline: Instant) -> Result<(), String> {
        let record = self.record();
        if fs::symlink_metadata(record.as_str()).is_ok() {
            self.unmount(deadline)?;
        }
        // The clone remains in its pool also when the directory is lost, after a crash of the host.
        if let Some(clone) = self.clone_of_template()? {
            let removed = clone.remove();
            removed.map_err(|error| format!("cannot destroy the clone: {error}"))?;
        }
        match fs::remove_dir(record.as_str()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove {record}: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// Unmounts what [`JailRoot::prepare`] mounted.
    pub(crate) fn unmount(&self, deadline: Instant) -> Result<(), String> {
        let record = self.record();
        let is_wanted = |mount: &MountPoint| match self.request.base {
            RootBase::Template(_) => mount.is_in(record.as_str()),
            RootBase::Existing(_) => self.is_device_mount(mount),
        };
        unmount_all(&is_wanted, deadline)
    }

    /// Refuses mount points that are in use: the clean-up could not tell the mounts apart.
    fn refuse_mounted(&self) -> Result<(), String> {
        let mounts = list_mounts()?;
        match mounts.iter().find(|mount| self.is_device_mount(mount)) {
            Some(mount) => Err(format!(
                "{} is a mount point already; omit `devfs` and `fdescfs`, or unmount it",
                String::from_utf8_lossy(&mount.path)
            )),
            None => Ok(()),
        }
    }

    /// Reports whether it is where this root's device files are mounted.
    fn is_device_mount(&self, mount: &MountPoint) -> bool {
        let mut inside = self.request.devfs.iter().chain(&self.request.fdescfs);
        inside.any(|inside| self.path().join(inside).as_str().as_bytes() == mount.path)
    }

    /// Makes the root from a template.
    fn populate(&self, template: &JailPath) -> Result<(), String> {
        drop(safe_open::directory(template, Trust::AnyOwner).map_err(text)?);
        match self.clone_of_template()? {
            Some(clone) if clone.has_snapshot()? => clone.create_at(&self.record())?,
            _ => {
                let root = JailPath::root();
                let mount_point = self.open(&root).map_err(text)?;
                let options = [("target", template.as_str())];
                self.mount(&root, &mount_point, "nullfs", &options, libc::MNT_RDONLY)?;
                self.mount_writable()?;
            }
        }
        let mut mount_points = self.request.mount_points.iter();
        mount_points.try_for_each(|inside| self.create_mount_point(inside))
    }

    /// Mounts the private directories. Those that the template lacks, or that are links to others, are omitted.
    fn mount_writable(&self) -> Result<(), String> {
        for inside in &self.request.writable {
            let mount_point = match self.open(inside) {
                Ok(mount_point) => mount_point,
                Err(OpenError::Link(_)) => continue,
                Err(OpenError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.to_string()),
            };
            // The owner and the mode are those of the directory (tmpfs(4)).
            let mut options = vec![("size", WRITABLE_SIZE)];
            match inside.as_str() {
                "/tmp" | "/var/tmp" => options.push(("mode", "1777")),
                "/var/run" => options = vec![("size", RUN_SIZE)],
                _ => {}
            }
            self.mount(inside, &mount_point, "tmpfs", &options, libc::MNT_NOSUID)?;
        }
        Ok(())
    }

    /// Creates a directory and its parents, without following links.
    fn create_mount_point(&self, inside: &JailPath) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot create mount point {inside}: {error}");
        let mut directory = self.open(&JailPath::root()).map_err(text)?;
        for name in inside.as_str().split('/').filter(|name| !name.is_empty()) {
            directory = match sys::open_directory_at(&directory, name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    sys::make_directory_at(&directory, name, 0o755).map_err(failed)?;
                    let made = sys::open_directory_at(&directory, name).map_err(failed)?;
                    // The umask of the agent applies to mkdir(2).
                    let made = fs::File::from(made);
                    let mode = fs::Permissions::from_mode(0o755);
                    made.set_permissions(mode).map_err(failed)?;
                    made.into()
                }
                opened => opened.map_err(failed)?,
            };
        }
        Ok(())
    }

    /// Mounts a devfs with the first ruleset that hides the host's devices. A ruleset that the kernel does not know is
    /// empty and hides nothing (devfs(8)), so each is first tried in a directory of root's.
    fn mount_devfs(&self, inside: &JailPath) -> Result<(), String> {
        let disks = sys::disks().map_err(|error| format!("cannot list disks: {error}"))?;
        for ruleset in RULESETS {
            let options = [("ruleset", ruleset)];
            let devices = self.try_devfs(&options)?;
            let is_hidden = |device: &str| !devices.iter().any(|name| name == device);
            if is_hidden("null") {
                return Err(format!(
                    "ruleset {ruleset} of devfs hides /dev/null; correct it in /etc/devfs.rules and run: service devfs restart"
                ));
            }
            let disks = disks.iter().map(String::as_str);
            if HOST_DEVICES.into_iter().chain(disks).all(is_hidden) {
                return self.mount_device_files(inside, "devfs", &options);
            }
        }
        Err(format!(
            "the rulesets {} of devfs do not hide the host's devices; as root run: service devfs restart",
            RULESETS.join(" and ")
        ))
    }

    /// Returns the names of the devices that a devfs with these options shows.
    fn try_devfs(&self, options: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let stage = format!("{}dev", mounts::stages(self.jail));
        let failed = |error: io::Error| format!("cannot try a devfs on {stage}: {error}");
        fs::create_dir(&stage).map_err(failed)?;
        sys::mount("devfs", &stage, options, libc::MNT_NOSUID).map_err(failed)?;
        let mounted = fs::File::open(&stage).map_err(failed)?;
        let devices = sys::names_in(&mounted.into()).map_err(failed)?;
        let deadline = Instant::now() + CLEANUP_TIMEOUT;
        unmount_all(&|mount| mount.path == stage.as_bytes(), deadline)?;
        fs::remove_dir(&stage).map_err(failed)?;
        Ok(devices)
    }

    /// Mounts device files, and verifies where: in a root that exists, the mount point may have been renamed since it was
    /// opened.
    fn mount_device_files(
        &self,
        inside: &JailPath,
        kind: &str,
        options: &[(&str, &str)],
    ) -> Result<(), String> {
        let list = || {
            let mut mounts = list_mounts()?;
            mounts.retain(|mount| mount.kind == kind.as_bytes());
            Ok::<_, String>(mounts)
        };
        let before = list()?;
        let path = self.path();
        let mount_point = OpenedPath::mount_point(&path, inside)
            .map_err(|error| format!("cannot mount {kind} on {inside}: {error}"))?;
        let target = &mount_point.target;
        self.mount(inside, target, kind, options, libc::MNT_NOSUID)?;
        let mut new = list()?;
        new.retain(|mount| !before.contains(mount));
        let wanted = path.join(inside);
        let is_wanted = |mount: &MountPoint| mount.path == wanted.as_str().as_bytes();
        if new.iter().any(is_wanted) {
            return Ok(());
        }
        new.retain(|mount| mount.is_in(path.as_str()));
        for mount in &new {
            sys::unmount(mount).map_err(|error| format!("cannot unmount a {kind}: {error}"))?;
        }
        Err(format!(
            "{wanted} was replaced while it was mounted; find the process that changes it"
        ))
    }

    /// Mounts a file system on an open directory.
    fn mount(
        &self,
        inside: &JailPath,
        mount_point: &impl AsRawFd,
        kind: &str,
        options: &[(&str, &str)],
        flags: c_int,
    ) -> Result<(), String> {
        let path = self.path().join(inside);
        mount_in(mount_point, kind, ".", options, flags)
            .map_err(|error| format!("cannot mount {kind} on {path}: {error}"))
    }

    /// Opens a directory in the root, without following links.
    fn open(&self, inside: &JailPath) -> Result<OwnedFd, OpenError> {
        safe_open::directory(&self.path().join(inside), Trust::AnyOwner)
    }

    /// Returns the root directory on the host.
    fn path(&self) -> JailPath {
        match &self.request.base {
            RootBase::Template(_) => self.record(),
            RootBase::Existing(root) => root.clone(),
        }
    }

    /// Returns the directory with the jail's name.
    fn record(&self) -> JailPath {
        colibri_jail_core::root_of_jail(self.jail)
    }

    /// Returns the clone of the template, if that is the mount point of a ZFS dataset.
    fn clone_of_template(&self) -> Result<Option<ZfsClone>, String> {
        let RootBase::Template(template) = &self.request.base else {
            return Ok(None);
        };
        match sys::zfs_dataset(template.as_str()) {
            Ok(dataset) => Ok(dataset.map(|dataset| ZfsClone::new(&dataset, self.jail))),
            // A removed template has no clone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!(
                "cannot find the file system of {template}: {error}"
            )),
        }
    }
}

fn text(error: OpenError) -> String {
    error.to_string()
}
