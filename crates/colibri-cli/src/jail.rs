//! `colibri jail init`: creates a template, the root directory of jails.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use colibri_jail_core::CommandLine;
use colibri_template::{
    ArchiveSource, Cancellation, Digest, InitOptions, InitProgress, TemplateError, TemplateReport,
    UnpackLimits, init,
};

use crate::args::{JailCommand, JailInit};
use crate::error::CliError;
use crate::output;
use crate::paths::CurrentDir;
use crate::signals::{self, SignalStream, TERMINATING};
use crate::tables::short_bytes;

/// Minimum time between two messages about progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Runs a command about jails.
pub(crate) async fn jail(command: JailCommand) -> Result<u8, CliError> {
    let JailCommand::Init(arguments) = command;
    let json = arguments.json;
    // Before the signal handlers: a signal during the read of the checksums ends this process.
    let options = tokio::task::spawn_blocking(move || options(*arguments));
    let options = options
        .await
        .map_err(|error| CliError::io("cannot read the options of the template")(error.into()))??;
    let mut signals = SignalStream::install(&TERMINATING)?;
    let cancellation = Cancellation::default();
    let cancelled = cancellation.clone();
    let mut creation = tokio::task::spawn_blocking(move || {
        let last_message = Cell::new(Instant::now());
        init(&options, &cancelled, &|progress| {
            report_progress(progress, &last_message);
        })
    });
    let mut ended_by = None;
    let created = loop {
        tokio::select! {
            created = &mut creation => break created,
            signal = signals.next() => {
                ended_by = Some(signal);
                cancellation.cancel();
            }
        }
    };
    let created =
        created.map_err(|error| CliError::io("cannot create a template")(error.into()))?;
    match (created, ended_by) {
        (Err(TemplateError::Cancelled), Some(signal)) => {
            output::message("cancelled; the template was not created");
            Ok(signals::exit_code(signal))
        }
        (created, _) => {
            output::print_result(json, &created?, summary)?;
            Ok(0)
        }
    }
}

fn options(arguments: JailInit) -> Result<InitOptions, CliError> {
    let current_dir = CurrentDir::read();
    let source = match arguments.from.contains("://") {
        true => ArchiveSource::Url(arguments.from.clone()),
        false => ArchiveSource::File(current_dir.path(arguments.from.as_ref())?),
    };
    let digest = match (arguments.digest, arguments.checksums) {
        (None, Some(list)) => Some(listed_digest(&list, &arguments.from)?),
        (digest, _) => digest,
    };
    let limits = UnpackLimits::default();
    Ok(InitOptions {
        directory: current_dir.path(&arguments.directory)?,
        source,
        digest,
        user: (!arguments.no_user).then_some(arguments.user),
        mount_points: arguments.mount_points,
        keep_setuid: arguments.keep_setuid,
        resolv_conf: arguments.resolv_conf,
        dataset: arguments.zfs,
        limits: UnpackLimits {
            max_bytes: arguments.max_size.map_or(limits.max_bytes, |size| size.0),
            ..limits
        },
    })
}

/// Returns the digest of the archive in a list of checksums. The list contains the last component of its path or URL.
fn listed_digest(list: &Path, from: &str) -> Result<Digest, CliError> {
    let name = from.rsplit('/').next().unwrap_or(from);
    Ok(Digest::from_checksums(list, name)?)
}

/// Writes a message about progress, unless the last one is recent.
fn report_progress(progress: InitProgress<'_>, last_message: &Cell<Instant>) {
    let text = match progress {
        InitProgress::Downloaded { bytes } => format!("downloaded {}", short_bytes(bytes)),
        InitProgress::Verified { bytes } => format!("verified {}", short_bytes(bytes)),
        InitProgress::Unpacked { entries, bytes } => format!(
            "unpacked {entries} files and directories, {}",
            short_bytes(bytes)
        ),
        InitProgress::Verifying { archive } => {
            return output::message(&format!("computing the digest of {archive}"));
        }
        _ => return,
    };
    if last_message.get().elapsed() >= PROGRESS_INTERVAL {
        last_message.set(Instant::now());
        output::message(&text);
    }
}

/// Formats a created template, with the command that uses it.
fn summary(report: &TemplateReport) -> String {
    let directory = report.directory.display().to_string();
    let clean = |text: &str| output::sanitize(text, 200);
    let mut lines = vec![format!(
        "created {}: {} files and directories, {}",
        clean(&directory),
        report.entries,
        short_bytes(report.bytes)
    )];
    if let Some(image) = &report.image {
        lines.push(format!("image: {}", clean(image)));
    }
    if let Some(platform) = &report.platform {
        lines.push(format!("platform: {}", clean(platform)));
    }
    lines.push(format!("digest: {}", report.digest));
    if !report.locked.is_empty() {
        let names = clean(&report.locked.join(", "));
        lines.push(format!("locked, had an empty password: {names}"));
    }
    if report.cleared_setuid > 0 {
        lines.push(format!(
            "setuid and setgid bits removed from {} files; --keep-setuid keeps them",
            report.cleared_setuid
        ));
    }
    if report.skipped_special > 0 {
        lines.push(format!(
            "not created: {} devices and FIFOs",
            report.skipped_special
        ));
    }
    if let Some(snapshot) = &report.snapshot {
        lines.push(format!("snapshot: {snapshot}"));
    }
    let option = match report.snapshot {
        Some(_) if cfg!(target_os = "freebsd") => "--jail-template",
        _ => "--jail-path",
    };
    let mut words = vec!["run", option, &directory];
    // bubblewrap takes user numbers only, and the caller's by default.
    if let Some(user) = report.user.as_ref().filter(|_| cfg!(target_os = "freebsd")) {
        words.extend(["--jail-user", user]);
    }
    words.extend(["--", "PROGRAM"]);
    if let Ok(command) = CommandLine::new("colibri", words) {
        lines.push(format!("use it: {command}"));
    }
    lines.join("\n") + "\n"
}
