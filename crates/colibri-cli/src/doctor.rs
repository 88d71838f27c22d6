//! `colibri doctor`: prints the findings of the daemon, or of this process if no daemon runs.

use std::time::Duration;

use colibri_client::{ClientError, DoctorResult, Finding, FindingStatus};

use colibri_config::ConfigFile;
use colibri_prepare::KnownConfinement;

use crate::args::Global;
use crate::connect::{connect_existing, lookup};
use crate::error::CliError;
use crate::explain::preparer;
use crate::{output, tables};

/// Timeout for the daemon's answer; longer than the sum of the timeouts of its checks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(45);

/// Prints the findings; exits with 1 if one of them is a failure.
pub(crate) async fn doctor(global: &Global, json: bool) -> Result<u8, CliError> {
    let findings = match daemon_findings(global).await {
        Ok(findings) => findings,
        Err(CliError::Client(ClientError::NoDaemon { .. })) => {
            output::message(
                "no daemon is running; these are the findings for a daemon started here",
            );
            local_findings(global).await?
        }
        Err(CliError::Settings(_)) => local_findings(global).await?,
        Err(error) => {
            let fix = "find the process that has the socket, e.g. with fuser(1); the other findings are those of a daemon started here";
            let mut findings = vec![Finding::fail(error.message(), fix)];
            findings.extend(local_findings(global).await?);
            findings
        }
    };
    let is_failure = |finding: &Finding| finding.status == FindingStatus::Fail;
    let failed = findings.iter().any(is_failure);
    let result = DoctorResult { findings };
    output::print_result(json, &result, |result| tables::findings(&result.findings))?;
    Ok(u8::from(failed))
}

async fn daemon_findings(global: &Global) -> Result<Vec<Finding>, CliError> {
    let answer = async { Ok(connect_existing(global).await?.doctor().await?.findings) };
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    answered.unwrap_or_else(|_| {
        Err(CliError::Message(format!(
            "cannot get findings from the daemon: no answer within {ANSWER_TIMEOUT:?}"
        )))
    })
}

/// Runs the checks of a daemon in this process. Invalid settings are the only finding, because all checks depend on them.
async fn local_findings(global: &Global) -> Result<Vec<Finding>, CliError> {
    // The whole file is checked: a daemon does not start with an error in a profile either.
    let file = ConfigFile::read(None, lookup).map_err(CliError::from);
    let found = file.and_then(|file| Ok((file, preparer(global)?)));
    let (file, (preparer, mut installation)) = match found {
        Ok(found) => found,
        Err(error) => {
            let fix = "correct the setting; options override the environment, and the environment overrides colibri.toml";
            return Ok(vec![Finding::fail(error.message(), fix)]);
        }
    };
    installation.confinements =
        KnownConfinement::of_settings(file.profile_jails(), file.autostart_jails());
    Ok(preparer.preflight(&installation).await)
}
