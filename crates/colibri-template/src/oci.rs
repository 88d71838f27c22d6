//! OCI images: an image layout in a tar archive (OCI image specification: image-layout.md, image-index.md, manifest.md).

use std::io::Read;

use serde::Deserialize;

use crate::archive_file::ArchiveFile;
use crate::archive_path::ArchivePath;
use crate::decompress::decompress;
use crate::digest::{Digest, HashingReader};
use crate::error::TemplateError;
use crate::init::InitProgress;
use crate::input::{BoundedReader, ByteBudget, Cancellation};
use crate::tar_stream::{EntryKind, TarStream, read_error};
use crate::tree::{Attributes, Tree};
use crate::unpack::{UnpackLimits, Unpacker};

/// The names at the top of an archive that contains an image layout; the last two are Docker's.
pub(crate) const TOP_LEVEL: [&str; 5] = [
    "oci-layout",
    "index.json",
    "blobs",
    "manifest.json",
    "repositories",
];
/// Maximum number of layers.
const MAX_LAYERS: usize = 256;
/// Maximum depth of indexes that name indexes.
const MAX_INDEX_DEPTH: u32 = 3;
/// Media types of an index.
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Media types of a manifest.
const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Media types of a layer. The content, not the type, selects the decoder.
const LAYER_TYPES: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
/// Annotation with the name of an image.
const REFERENCE: &str = "org.opencontainers.image.ref.name";

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// Operating system and architecture, in the words of Go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An image whose blobs are stored in a directory; the digest of each blob was checked.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    store: &'a Tree,
    archive: String,
    index_digest: Digest,
    manifest_digest: Digest,
    layers: Vec<Digest>,
    /// Operating system and architecture, like `freebsd/amd64`; `None` if the image does not name them.
    pub(crate) platform: Option<String>,
    /// Name of the image, like `freebsd-runtime:15.0-RELEASE-amd64`.
    pub(crate) reference: Option<String>,
}

impl<'a> Image<'a> {
    /// Stores the blobs of an archive in `store`, checks their digests, and reads index and manifest.
    pub(crate) fn store(
        archive: &ArchiveFile,
        store: &'a Tree,
        limits: UnpackLimits,
        cancellation: &Cancellation,
        progress: &dyn Fn(InitProgress<'_>),
    ) -> Result<Self, TemplateError> {
        store_blobs(archive, store, limits, cancellation, progress)?;
        let image = |problem: &str| TemplateError::Image {
            archive: archive.name.clone(),
            problem: problem.to_owned(),
        };
        let layout: ArchivePath = path(&["index.json"]);
        let index = store.read(&layout)?;
        let index =
            index.ok_or_else(|| image("it has no index.json; export it as an OCI archive"))?;
        let reader = Reader {
            store,
            archive: &archive.name,
        };
        let mut manifests = Vec::new();
        let parsed: Index = reader.parse("index.json", &index.content)?;
        reader.collect_manifests(parsed, MAX_INDEX_DEPTH, &mut manifests)?;
        let descriptor = select(&manifests).map_err(|problem| image(&problem))?;
        let (manifest_digest, manifest) = reader.blob::<Manifest>(descriptor)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(image(&format!(
                "it has more than {MAX_LAYERS} layers; use another image"
            )));
        }
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            if !LAYER_TYPES.contains(&layer.media_type.as_str()) {
                let media_type = &layer.media_type;
                return Err(image(&format!(
                    "a layer has the media type {media_type:?}; use an image with tar layers"
                )));
            }
            layers.push(reader.find(layer)?.0);
        }
        let config: serde_json::Value = reader.blob(&manifest.config)?.1;
        let platform = Platform::deserialize(&config).ok();
        let annotations = descriptor.annotations.as_ref();
        Ok(Self {
            store,
            archive: archive.name.clone(),
            index_digest: Digest::of(&index.content),
            manifest_digest,
            layers,
            platform: platform.map(|platform| platform.to_string()),
            reference: annotations.and_then(|all| all.get(REFERENCE)).cloned(),
        })
    }

    /// Checks a digest that the publisher names: that of the index or that of the manifest. Either one fixes all blobs.
    pub(crate) fn check_digest(
        &self,
        expected: Digest,
        of_file: Digest,
    ) -> Result<(), TemplateError> {
        match [self.index_digest, self.manifest_digest].contains(&expected) {
            true => Ok(()),
            false => Err(TemplateError::DigestMismatch {
                what: self.archive.clone(),
                expected,
                found: of_file,
            }),
        }
    }

    /// Returns the digest of the manifest.
    pub(crate) fn manifest_digest(&self) -> Digest {
        self.manifest_digest
    }

    /// Unpacks all layers in order.
    pub(crate) fn unpack(&self, unpacker: &mut Unpacker<'_>) -> Result<(), TemplateError> {
        for digest in &self.layers {
            let name = format!("layer {digest}");
            let open = || {
                let blob = self.store.open(&blob_path(digest))?;
                let blob = blob.ok_or_else(|| missing(&self.archive, &digest.to_string()))?;
                decompress(blob).map_err(|error| read_error(&name, &error))
            };
            unpacker.layer(open, &name)?;
        }
        Ok(())
    }
}

/// Reads the documents of a stored image.
struct Reader<'a> {
    store: &'a Tree,
    archive: &'a str,
}

impl Reader<'_> {
    fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
        bytes: &[u8],
    ) -> Result<T, TemplateError> {
        serde_json::from_slice(bytes).map_err(|error| TemplateError::Image {
            archive: self.archive.to_owned(),
            problem: format!("{name} is invalid: {error}; export the image again"),
        })
    }

    /// Returns the digest of a stored blob, and the open blob. Its size equals that of the descriptor.
    fn find(&self, descriptor: &Descriptor) -> Result<(Digest, std::fs::File), TemplateError> {
        let image = |problem: String| TemplateError::Image {
            archive: self.archive.to_owned(),
            problem,
        };
        let digest: Digest = descriptor.digest.parse().map_err(image)?;
        let blob = self.store.open(&blob_path(&digest))?;
        let blob = blob.ok_or_else(|| missing(self.archive, &descriptor.digest))?;
        let length = blob
            .metadata()
            .map_err(TemplateError::file("examine", digest.to_string()))?
            .len();
        match length == descriptor.size {
            true => Ok((digest, blob)),
            false => Err(image(format!(
                "blob {digest} has {length} bytes, not {}; export the image again",
                descriptor.size
            ))),
        }
    }

    fn blob<T: for<'de> Deserialize<'de>>(
        &self,
        descriptor: &Descriptor,
    ) -> Result<(Digest, T), TemplateError> {
        let (digest, _) = self.find(descriptor)?;
        let blob = self.store.read(&blob_path(&digest))?;
        let blob = blob.ok_or_else(|| missing(self.archive, &descriptor.digest))?;
        Ok((digest, self.parse(&descriptor.digest, &blob.content)?))
    }

    /// Adds the manifests of an index and of the indexes in it.
    fn collect_manifests(
        &self,
        index: Index,
        depth: u32,
        to: &mut Vec<Descriptor>,
    ) -> Result<(), TemplateError> {
        for descriptor in index.manifests {
            let media_type = descriptor.media_type.as_str();
            if MANIFEST_TYPES.contains(&media_type) {
                to.push(descriptor);
            } else if INDEX_TYPES.contains(&media_type) && depth > 0 {
                let (_, nested) = self.blob(&descriptor)?;
                self.collect_manifests(nested, depth - 1, to)?;
            }
        }
        Ok(())
    }
}

/// Returns the only manifest, or that of this host's platform.
fn select(manifests: &[Descriptor]) -> Result<&Descriptor, String> {
    if let [only] = manifests {
        return Ok(only);
    }
    let host = Platform::host();
    let mut matching = manifests
        .iter()
        .filter(|manifest| manifest.platform.as_ref() == Some(&host));
    match (matching.next(), matching.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => Err(format!(
            "it contains {} images, and none for {host}; use another image",
            manifests.len()
        )),
        (Some(_), Some(_)) => Err(format!(
            "it contains several images for {host}; export one of them"
        )),
    }
}

impl Platform {
    fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

fn missing(archive: &str, blob: &str) -> TemplateError {
    TemplateError::Image {
        archive: archive.to_owned(),
        problem: format!(
            "it does not contain the blob {blob}; export the image again with all its layers"
        ),
    }
}

/// Returns a path of fixed components.
fn path(components: &[&str]) -> ArchivePath {
    ArchivePath::of_names(components)
}

fn blob_path(digest: &Digest) -> ArchivePath {
    path(&["blobs", "sha256", &digest.hex()])
}

/// Stores index.json and all SHA-256 blobs of an archive, and compares the digest of each blob with its name.
fn store_blobs(
    archive: &ArchiveFile,
    store: &Tree,
    limits: UnpackLimits,
    cancellation: &Cancellation,
    progress: &dyn Fn(InitProgress<'_>),
) -> Result<(), TemplateError> {
    let budget = ByteBudget::new(limits.max_bytes);
    let bounded = BoundedReader::new(archive.decompressed()?, &budget, cancellation);
    let mut stream = TarStream::new(bounded, &archive.name);
    let (mut entries, mut bytes) = (0, 0);
    while let Some(entry) = stream.next_entry()? {
        entries += 1;
        if entries > limits.max_entries {
            let limit = limits.max_entries;
            return Err(TemplateError::TooManyEntries { limit });
        }
        let shown = entry.path.to_string();
        let is_index = shown == "/index.json";
        let expected = shown.strip_prefix("/blobs/sha256/");
        if entry.kind != EntryKind::File || !(is_index || expected.is_some()) {
            continue;
        }
        let expected = match expected {
            None => None,
            Some(name) => Some(
                format!("sha256:{name}")
                    .parse::<Digest>()
                    .map_err(|problem| stream.refused(&shown, &problem))?,
            ),
        };
        let stored = expected.map_or(path(&["index.json"]), |digest| blob_path(&digest));
        if store.kind(&stored)?.is_some() {
            return Err(stream.refused(&shown, "the archive contains it twice"));
        }
        let attributes = Attributes {
            mode: 0o600,
            owner: None,
            mtime: None,
        };
        let failed = |error: &std::io::Error| read_error(&archive.name, error);
        let mut content = HashingReader::new(stream.by_ref());
        bytes += store.file(&stored, &attributes, &mut content, failed)?;
        let found = content.finish();
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let what = format!("blob {} of {}", expected.hex(), archive.name);
            return Err(TemplateError::DigestMismatch {
                what,
                expected,
                found,
            });
        }
        progress(InitProgress::Verified { bytes });
    }
    Ok(())
}
