//! From a preset to a spawn request.

use std::path::{Path, PathBuf};

use colibri_glasspane::{adapted_runtime, recognize_program};
use colibri_jail_core::{Destination, HomeFile, HttpScheme, JailConfig, MountConfig};
use colibri_types::{AdapterOptions, AgentRuntime, Env, SpawnRequest};

use crate::preset::{Key, Preset};
use crate::program::{self, InstalledProgram};

/// Value of `PATH` inside, after the directories of the interpreter.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// How the agent gets its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode<'a> {
    /// One prompt; the agent ends after it.
    Once(&'a str),
    /// Prompts on standard input.
    Driven,
    /// As [`Mode::Driven`], but the agent asks before it uses its tools.
    Asking,
    /// The agent's own terminal interface, with a first prompt.
    Terminal(Option<&'a str>),
}

/// The session of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session<'a> {
    /// A new one.
    New,
    /// The one with this id.
    Id(&'a str),
    /// The last one in the agent's home.
    Last,
}

type Lookup<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// The environment and the home of the user.
pub struct Host<'a> {
    lookup: Lookup<'a>,
    home: Option<PathBuf>,
}

impl<'a> Host<'a> {
    /// Creates a host whose environment variables `lookup` returns.
    pub fn new(lookup: impl Fn(&str) -> Option<String> + 'a) -> Self {
        let home = lookup("HOME").map(PathBuf::from);
        Self {
            lookup: Box::new(lookup),
            home: home.filter(|home| home.is_absolute()),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// Returns the path of the host for one that may start with `~/`, and the path in the home.
    fn in_home(&self, path: &str) -> Option<(PathBuf, String)> {
        let relative = path.strip_prefix("~/")?;
        Some((self.home.as_ref()?.join(relative), relative.to_owned()))
    }
}

/// A spawn request for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentPlan {
    /// The request. Its jail has no root and no workspace.
    pub request: SpawnRequest,
    /// The program on the host.
    pub program: InstalledProgram,
    /// Where the agent's login comes from: variables and files; empty if there is none.
    pub logins: Vec<String>,
    /// Files of the user that the agent gets copies of.
    pub copied: Vec<PathBuf>,
    /// Variables with keys that the agent gets itself, not a placeholder: it uses the key in other ways than in the head of a
    /// request, or its URL is not `https`.
    pub exposed_keys: Vec<String>,
}

/// Why an agent cannot be run by its preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The program is not installed.
    #[error("cannot find {program} of agent {agent} in PATH; install it with: {install}")]
    NotInstalled {
        /// Name of the preset.
        agent: String,
        /// The program.
        program: String,
        /// Command that installs it.
        install: String,
    },
    /// The preset has no arguments for the mode.
    #[error("agent {agent} cannot {mode}; {hint}")]
    NoMode {
        /// Name of the preset.
        agent: String,
        /// What it cannot do.
        mode: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// An ended agent cannot be continued.
    #[error(
        "agent {agent} has reported no session, or cannot continue one in this mode; start a new agent with colibri spawn --agent {agent}"
    )]
    NoSession {
        /// Name of the preset.
        agent: String,
    },
    /// An ended agent has reported a session that could be taken for an option.
    #[error(
        "agent {agent} has reported the session {session:?}, which is not passed to it: a session consists of letters, digits, '-', '_', '.', ':' and '/', and does not start with '-'; start a new agent"
    )]
    InvalidSession {
        /// Name of the preset.
        agent: String,
        /// What it reported.
        session: String,
    },
    /// The URL of a model contains a user name or a password.
    #[error(
        "cannot pass {variable} to the agent: the URL contains a user name or a password, which the agent could read; remove it from the URL (the agent authenticates with {key})"
    )]
    UserInUrl {
        /// The variable with the URL.
        variable: String,
        /// The variable with the key.
        key: String,
    },
    /// Neither a key nor a login file exists.
    #[error("agent {agent} has no login: {missing}{}{hint}", if .hint.is_empty() { "" } else { "; " })]
    NoLogin {
        /// Name of the preset.
        agent: String,
        /// The variables and files, none of which exists.
        missing: String,
        /// How to log in.
        hint: String,
    },
}

/// What an ended agent had, for [`Preset::resume`].
#[derive(Debug, Clone)]
pub struct EndedAgent<'a> {
    /// The session that it reported.
    pub session: Option<&'a str>,
    /// Its jail.
    pub jail: Option<&'a JailConfig>,
    /// Names of the variables in its environment. It gets no key that is not among them.
    pub variables: Vec<&'a str>,
    /// Arguments that its user added.
    pub added_args: &'a [String],
}

impl Preset {
    /// Finds the program on the host.
    ///
    /// # Errors
    /// It is not installed.
    pub fn installed(&self, name: &str, host: &Host<'_>) -> Result<InstalledProgram, PlanError> {
        let search = host.variable("PATH").unwrap_or_default();
        let found = program::find(&self.program, &search, host.home.as_deref());
        found.ok_or_else(|| PlanError::NotInstalled {
            agent: name.to_owned(),
            program: self.program.clone(),
            install: self.install.clone(),
        })
    }

    /// Returns the request that runs the agent, called `name`, in a mode. A missing login is not an error here; see
    /// [`Preset::check_login`].
    ///
    /// # Errors
    /// The agent is not installed, or has no such mode.
    pub fn plan(
        &self,
        name: &str,
        mode: &Mode<'_>,
        session: Session<'_>,
        host: &Host<'_>,
    ) -> Result<AgentPlan, PlanError> {
        let program = self.installed(name, host)?;
        // Without arguments for one prompt, the adapter sends it.
        let once = match mode {
            Mode::Once(prompt) if self.prompt_args.is_none() && self.stdin_args.is_some() => {
                Some(*prompt)
            }
            _ => None,
        };
        let mode = if once.is_some() { &Mode::Driven } else { mode };
        let mut plan = AgentPlan {
            request: SpawnRequest {
                program: Some(program.path.to_string_lossy().into_owned()),
                env: Env(self.env.clone()),
                preset: Some(name.to_owned()),
                no_input: (once.is_some() || matches!(mode, Mode::Once(_))).then_some(true),
                ..SpawnRequest::default()
            },
            program,
            logins: Vec::new(),
            copied: Vec::new(),
            exposed_keys: Vec::new(),
        };
        if let Mode::Asking = mode {
            plan.request.env.0.extend(self.ask_env.clone());
        }
        let mut jail = JailConfig {
            mounts: plan
                .program
                .mounts
                .iter()
                .map(|path| read_only(path))
                .collect(),
            allow: self.hosts.clone(),
            ..JailConfig::default()
        };
        let (words, words_continue) = self.words(name, mode, session)?;
        let mut first = Vec::new();
        let mut with_login_files = false;
        for key in &self.keys {
            if let Some(value) = host.variable(&key.name) {
                with_login_files |= key.with_login_files;
                plan.logins.push(key.name.clone());
                first.extend(add_key(key, value, host, &mut jail, &mut plan)?);
            }
        }
        let has_key = !plan.logins.is_empty();
        self.add_files(host, has_key, with_login_files, &mut jail, &mut plan);
        let args: Vec<String> = first.into_iter().chain(words).collect();
        // The real program may have another name, like that of a script.
        let recognized = recognize_program(&self.program, &args);
        let runtime = match mode {
            Mode::Terminal(_) => AgentRuntime::Generic,
            _ => self.runtime.or(recognized).unwrap_or_default(),
        };
        let adapter_session = match session {
            Session::Id(id) if adapted_runtime(runtime, &self.program, &args).is_some() => {
                Some(id.to_owned())
            }
            _ => None,
        };
        // Otherwise the agent would start a new session.
        if session != Session::New && !words_continue && adapter_session.is_none() {
            return Err(PlanError::NoSession {
                agent: name.to_owned(),
            });
        }
        let adapter = AdapterOptions {
            session: adapter_session,
            prompt: once.map(str::to_owned),
            ask: matches!(mode, Mode::Asking),
        };
        plan.request.adapter =
            Some(adapter).filter(|options| *options != AdapterOptions::default());
        plan.request.runtime = Some(runtime);
        plan.request.args = Some(args);
        let path = plan
            .program
            .directories
            .iter()
            .map(|path| path.to_string_lossy());
        let path: Vec<_> = path.chain([SYSTEM_PATH.into()]).collect();
        plan.request.env.0.insert("PATH".to_owned(), path.join(":"));
        plan.request.jail = Some(jail);
        Ok(plan)
    }

    /// Returns the request that continues an ended agent in its jail.
    ///
    /// # Errors
    /// The agent reported no session and cannot continue its last one, or reported one that could be an option; also as [`Preset::plan`].
    pub fn resume(
        &self,
        name: &str,
        mode: &Mode<'_>,
        ended: &EndedAgent<'_>,
        host: &Host<'_>,
    ) -> Result<AgentPlan, PlanError> {
        let session = match ended.session {
            Some(id) if is_session_id(id) => Session::Id(id),
            Some(id) => {
                return Err(PlanError::InvalidSession {
                    agent: name.to_owned(),
                    session: id.to_owned(),
                });
            }
            None if !self.resume_last_args.is_empty() => Session::Last,
            None => {
                return Err(PlanError::NoSession {
                    agent: name.to_owned(),
                });
            }
        };
        let had = |variable: &String| ended.variables.contains(&variable.as_str());
        let mut preset = self.clone();
        // The jail of the agent has no credential for another key.
        preset.keys.retain_mut(|key| {
            key.base_url = key.base_url.take().filter(had);
            key.pass_variables.retain(had);
            had(key.alias.as_ref().unwrap_or(&key.name))
        });
        let mut plan = preset.plan(name, mode, session, host)?;
        // The program may need other mounts than at the first start; the rest of the jail stays as it was.
        let planned = plan.request.jail.take().unwrap_or_default();
        plan.request.jail = ended.jail.cloned().map(|mut jail| {
            for mount in planned.mounts {
                let target = mount.target_or_source();
                if !jail
                    .mounts
                    .iter()
                    .any(|other| other.target_or_source() == target)
                {
                    jail.mounts.push(mount);
                }
            }
            jail
        });
        let args = plan.request.args.get_or_insert_default();
        args.extend(ended.added_args.iter().cloned());
        plan.request.added_args = ended.added_args.to_vec();
        Ok(plan)
    }

    /// Reports that the agent has neither a key nor a login file.
    ///
    /// # Errors
    /// It has none.
    pub fn check_login(&self, name: &str, plan: &AgentPlan) -> Result<(), PlanError> {
        if !plan.logins.is_empty() || (self.keys.is_empty() && self.login_files.is_empty()) {
            return Ok(());
        }
        let variables: Vec<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
        let mut missing = format!("none of the variables {} is set", variables.join(", "));
        if !self.login_files.is_empty() {
            missing += &format!(", and {} does not exist", self.login_files.join(" or "));
        }
        Err(PlanError::NoLogin {
            agent: name.to_owned(),
            missing,
            hint: self.login_hint.clone(),
        })
    }

    /// Returns the arguments of a mode, and whether they continue the session.
    fn words(
        &self,
        name: &str,
        mode: &Mode<'_>,
        session: Session<'_>,
    ) -> Result<(Vec<String>, bool), PlanError> {
        let (id, words) = match session {
            Session::New => ("", &Vec::new()),
            Session::Id(id) => (id, &self.resume_args),
            Session::Last => ("", &self.resume_last_args),
        };
        let resumed = session != Session::New;
        let (template, label, prompt, hint) = match mode {
            Mode::Once(prompt) => (
                self.prompt_args_resumed
                    .as_ref()
                    .filter(|_| resumed)
                    .or(self.prompt_args.as_ref()),
                "take a prompt as an argument",
                Some(*prompt),
                "give no prompt, and send one with colibri prompt",
            ),
            Mode::Driven => (
                self.stdin_args.as_ref(),
                "read prompts on standard input",
                None,
                "give a prompt",
            ),
            Mode::Asking => (
                self.ask_args.as_ref(),
                "ask before it runs commands",
                None,
                "remove --ask",
            ),
            Mode::Terminal(prompt) => (
                self.terminal_args_resumed
                    .as_ref()
                    .filter(|_| resumed)
                    .or(self.terminal_args.as_ref()),
                "show a terminal interface",
                *prompt,
                "remove -t",
            ),
        };
        let template = template.ok_or_else(|| PlanError::NoMode {
            agent: name.to_owned(),
            mode: label,
            hint,
        })?;
        let fill = |word: &String| {
            // A session contains no braces; see `is_session_id`.
            let word = word.replace("{session}", id);
            word.replace("{prompt}", prompt.unwrap_or_default())
        };
        let resume: Vec<String> = words.iter().map(fill).collect();
        let contains = |part: &str| template.iter().any(|word| word.contains(part));
        let is_continued =
            contains("{resume}") && !resume.is_empty() || contains("{session}") && !id.is_empty();
        let words = template.iter().flat_map(|word| match word.as_str() {
            "{resume}" => resume.clone(),
            _ => vec![fill(word)],
        });
        let mut words: Vec<String> = words.collect();
        if let Mode::Terminal(Some(prompt)) = mode {
            words.push((*prompt).to_owned());
        }
        Ok((words, is_continued))
    }

    /// Adds the files of the home, and the hosts of a login file.
    fn add_files(
        &self,
        host: &Host<'_>,
        has_key: bool,
        with_login_files: bool,
        jail: &mut JailConfig,
        plan: &mut AgentPlan,
    ) {
        let exists = |file: &&String| host.in_home(file).is_some_and(|(path, _)| path.exists());
        if !has_key {
            plan.logins
                .extend(self.login_files.iter().filter(exists).cloned());
        }
        for file in &self.home_files {
            let Some((path, target)) = host.in_home(file) else {
                continue;
            };
            let is_login =
                (self.login_files.iter()).any(|login| Path::new(login).starts_with(file));
            // A key takes precedence: the agent does not get another login.
            if !path.exists() || (is_login && has_key && !with_login_files) {
                continue;
            }
            jail.home_files.push(HomeFile {
                target,
                source: Some(path.to_string_lossy().into_owned()),
                content: None,
            });
            plan.copied.push(path);
        }
        if !has_key && !plan.logins.is_empty() {
            jail.allow.extend(self.login_hosts.iter().cloned());
        }
        let copied = |target: &str| jail.home_files.iter().any(|file| file.target == target);
        let fixed: Vec<HomeFile> = self
            .files
            .iter()
            .filter(|file| (has_key || !file.with_key) && !copied(&file.target))
            .map(|file| HomeFile {
                target: file.target.clone(),
                source: None,
                content: Some(file.content.clone()),
            })
            .collect();
        jail.home_files.extend(fixed);
        // An empty file makes the daemon provide a home.
        if jail.home_files.is_empty() {
            jail.home_files.push(HomeFile {
                target: ".colibri".to_owned(),
                source: None,
                content: Some(String::new()),
            });
        }
    }
}

/// Reports whether a session, which an agent that is not trusted has reported, is a word that cannot be an option.
fn is_session_id(id: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    !id.is_empty() && !id.starts_with('-') && id.bytes().all(is_allowed)
}

fn read_only(path: &Path) -> MountConfig {
    MountConfig {
        source: path.to_string_lossy().into_owned(),
        target: None,
        read_only: true,
    }
}

/// Adds a key to the environment, and its hosts to the jail. Returns the arguments that the key needs.
fn add_key(
    key: &Key,
    value: String,
    host: &Host<'_>,
    jail: &mut JailConfig,
    plan: &mut AgentPlan,
) -> Result<Vec<String>, PlanError> {
    let env = &mut plan.request.env.0;
    let name = key.alias.as_ref().unwrap_or(&key.name);
    let url = key
        .base_url
        .as_ref()
        .and_then(|url| Some((url, host.variable(url)?)));
    let base_url = url
        .as_ref()
        .map(|(_, url)| url.clone())
        .or(key.default_url.clone());
    let mut destination = key.host.clone().map(|host| (host, true));
    if let Some((variable, url)) = &url {
        if has_user(url) {
            return Err(PlanError::UserInUrl {
                variable: (*variable).clone(),
                key: key.name.clone(),
            });
        }
        env.insert((*variable).clone(), url.clone());
        destination = authority(url).or(destination);
    }
    match destination {
        Some((host, true)) if !key.secret => jail.credentials.push(format!("{name}@{host}")),
        exposed => {
            jail.allow.extend(exposed.map(|(host, _)| host));
            plan.exposed_keys.push(name.clone());
        }
    }
    jail.allow.extend(key.hosts.iter().cloned());
    for variable in &key.pass_variables {
        if let Some(value) = host.variable(variable) {
            env.insert(variable.clone(), value);
        }
    }
    env.insert(name.clone(), value);
    let base_url = base_url.unwrap_or_default();
    let args = key.args.iter();
    Ok(args
        .map(|word| word.replace("{base_url}", &base_url))
        .collect())
}

/// Reports whether a URL contains the name of a user, or a password.
fn has_user(url: &str) -> bool {
    let (_, rest) = url.split_once("//").unwrap_or(("", url));
    authority_part(rest).contains('@')
}

/// Returns the part of a URL between its scheme and its path, from what follows the scheme.
fn authority_part(rest: &str) -> &str {
    rest.find(['/', '?', '#']).map_or(rest, |end| &rest[..end])
}

/// Returns `HOST:PORT` of a URL, and whether it uses TLS; `None` if it is not an HTTP URL.
fn authority(url: &str) -> Option<(String, bool)> {
    let (scheme, is_tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (HttpScheme::Https, true, rest),
        (_, Some(rest)) => (HttpScheme::Http, false, rest),
        _ => return None,
    };
    let destination =
        Destination::from_authority(authority_part(rest), scheme.default_port()).ok()?;
    Some((destination.to_string(), is_tls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::tests::executable;

    #[test]
    fn arguments_of_all_presets_match_the_snapshot() {
        use std::fmt::Write;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        let host = Host::new(|name| (name == "PATH").then(|| path.clone()));
        let mut shown = String::new();
        for (name, preset) in crate::builtin() {
            executable(&dir.path().join(&preset.program), "");
            for (label, mode) in [
                ("once", Mode::Once("PROMPT")),
                ("driven", Mode::Driven),
                ("asking", Mode::Asking),
                ("terminal", Mode::Terminal(None)),
            ] {
                for session in [Session::New, Session::Id("ID"), Session::Last] {
                    let line = match preset.plan(&name, &mode, session, &host) {
                        Ok(plan) => {
                            let request = plan.request;
                            let args = request.args.unwrap().join(" ");
                            let adapter = request.adapter.unwrap_or_default().arguments().join(" ");
                            let runtime = request.runtime.unwrap();
                            format!("{runtime}: {args} [{adapter}]")
                        }
                        Err(error) => error.to_string(),
                    };
                    writeln!(shown, "{name} {label} {session:?}: {line}").unwrap();
                }
            }
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn agent_with_a_key_gets_no_login_file_and_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("agent");
        executable(&program, "");
        std::fs::create_dir_all(dir.path().join("settings/deep")).unwrap();
        std::fs::write(dir.path().join("settings/deep/login"), "s3cret").unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let preset = Preset {
            program: program.to_str().unwrap().to_owned(),
            stdin_args: Some(Vec::new()),
            home_files: list(&["~/settings", "~/other"]),
            login_files: list(&["~/settings/deep/login"]),
            keys: vec![Key {
                name: "KEY".to_owned(),
                host: Some("api.example.com".to_owned()),
                base_url: Some("URL".to_owned()),
                args: list(&["--url", "{base_url}"]),
                ..Key::default()
            }],
            ..Preset::default()
        };
        let home = dir.path().to_str().unwrap();
        let plan = |key: Option<&str>, url: Option<&str>| {
            let (key, url) = (key.map(str::to_owned), url.map(str::to_owned));
            let host = Host::new(|name| match name {
                "HOME" => Some(home.to_owned()),
                "KEY" => key.clone(),
                "URL" => url.clone(),
                _ => None,
            });
            preset.plan("agent", &Mode::Driven, Session::New, &host)
        };
        let copies = |plan: &AgentPlan| -> Vec<String> {
            let files = &plan.request.jail.as_ref().unwrap().home_files;
            files.iter().map(|file| file.target.clone()).collect()
        };
        assert_eq!(copies(&plan(None, None).unwrap()), ["settings", "other"]);
        for (url, exposed) in [
            (None, false),
            (Some("https://llm.example.com/v1"), false),
            (Some("http://llm.example.com/v1"), true),
        ] {
            let plan = plan(Some("sk"), url).unwrap();
            assert_eq!(copies(&plan), ["other"], "{url:?}");
            let jail = plan.request.jail.as_ref().unwrap();
            assert_eq!(jail.credentials.is_empty(), exposed, "{url:?}");
            assert_eq!(plan.exposed_keys == ["KEY"], exposed, "{url:?}");
        }
        for url in [
            "https://me:hunter2@llm.example.com/v1",
            "http://me@h",
            "me@h:8000",
        ] {
            let error = plan(Some("sk"), Some(url)).unwrap_err().to_string();
            assert!(error.starts_with("cannot pass URL"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn session_of_an_agent_is_never_an_option() {
        for (id, expected) in [
            ("019c2f3e-3b0a-7c61-9d3e-d1f2", true),
            ("ses_4f2a", true),
            ("/home/me/.pi/sessions/a.jsonl", true),
            ("", false),
            ("-c", false),
            ("--dangerously-skip-permissions", false),
            ("a b", false),
            ("a\n--yolo", false),
        ] {
            assert_eq!(is_session_id(id), expected, "{id:?}");
        }
    }
}
