#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Tests of the whole way from sources to settings.

use std::collections::HashMap;

use super::*;

/// Sources that a test fills in.
struct Setup {
    args: Vec<OsString>,
    env: HashMap<&'static str, &'static str>,
    names: Option<Vec<(&'static str, Value)>>,
    dir: tempfile::TempDir,
    cpus: cpus::Available,
}

/// A config file whose names are known; it remembers what it was asked to run.
struct Fake<'a> {
    names: &'a [(&'static str, Value)],
    ran: Vec<Location>,
}

impl ConfigFile for Fake<'_> {
    fn run(&mut self, location: &Location) -> Result<Vec<(String, Value)>, StartError> {
        self.ran.push(location.clone());
        Ok(self.names.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }
}

impl Setup {
    fn new(line: &str) -> Self {
        Self {
            args: shlex::split(line).unwrap().into_iter().map(OsString::from).collect(),
            env: HashMap::new(),
            names: None,
            dir: tempfile::tempdir().unwrap(),
            cpus: cpus::Available { mask: vec![0, 1, 2], quota: None },
        }
    }

    fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.env.insert(name, value);
        self
    }

    /// Puts a gunicorn.conf.py with these names into the start directory.
    fn file(mut self, names: &[(&'static str, Value)]) -> Self {
        std::fs::write(self.dir.path().join("gunicorn.conf.py"), "").unwrap();
        self.names = Some(names.to_vec());
        self
    }

    fn load_with(&self, file: Option<&mut dyn ConfigFile>) -> Result<Loaded, ConfigError> {
        let env = |name: &str| self.env.get(name).map(OsString::from);
        let cpus = || self.cpus.clone();
        load(
            &Sources { args: &self.args, env: &env, directory: self.dir.path(), cpus: &cpus, program: None },
            file,
        )
    }

    fn result(&self) -> Result<Loaded, ConfigError> {
        match &self.names {
            Some(names) => self.load_with(Some(&mut Fake { names, ran: Vec::new() })),
            None => self.load_with(None),
        }
    }

    fn settings(&self) -> Settings {
        match self.result() {
            Ok(Loaded::Run(settings)) => *settings,
            Ok(Loaded::Print { text, .. }) => panic!("printed {text}"),
            Err(error) => panic!("{error}"),
        }
    }

    fn error(&self) -> StartError {
        match self.result() {
            Err(error) => error,
            Ok(loaded) => panic!("accepted: {loaded:?}"),
        }
    }
}

fn settings(line: &str) -> Settings {
    Setup::new(line).settings()
}

fn error(line: &str) -> String {
    let error = Setup::new(line).error();
    assert_eq!(error.exit(), Exit::Start);
    error.to_string()
}

/// Each step of the order: the stronger source wins, and is named.
#[test]
fn stronger_sources_replace_weaker_ones() {
    let file = [("backlog", Value::Int(3))];
    let steps = [
        (Setup::new("app:app"), 2048, "default"),
        (Setup::new("app:app").file(&file), 3, "backlog, in "),
        (
            Setup::new("app:app").file(&file).env("GUNICORN_CMD_ARGS", "--backlog 4"),
            4,
            "--backlog in GUNICORN_CMD_ARGS",
        ),
        (
            Setup::new("app:app")
                .file(&file)
                .env("GUNICORN_CMD_ARGS", "--backlog 4")
                .env("RINGHORN_CMD_ARGS", "--backlog=5"),
            5,
            "--backlog in RINGHORN_CMD_ARGS",
        ),
        (
            Setup::new("app:app --backlog 6")
                .file(&file)
                .env("GUNICORN_CMD_ARGS", "--backlog 4")
                .env("RINGHORN_CMD_ARGS", "--backlog=5"),
            6,
            "--backlog on the command line",
        ),
    ];
    for (setup, expected, source) in steps {
        let settings = setup.settings();
        assert_eq!(settings.backlog, expected);
        assert!(settings.source("backlog").starts_with(source), "{}", settings.source("backlog"));
    }
}

#[test]
fn environment_variables_stand_behind_defaults_only() {
    let bind = |setup: Setup| setup.settings().bind[0].to_string();
    assert_eq!(bind(Setup::new("app:app")), "http://127.0.0.1:8000");
    assert_eq!(bind(Setup::new("app:app").env("PORT", "5000")), "http://0.0.0.0:5000");
    assert_eq!(bind(Setup::new("app:app").env("PORT", "")), "http://127.0.0.1:8000");
    let file = [("bind", Value::text("10.0.0.1:1"))];
    assert_eq!(bind(Setup::new("app:app").env("PORT", "5000").file(&file)), "http://10.0.0.1:1");
    assert_eq!(bind(Setup::new("-b :1 app:app").env("PORT", "5000").file(&file)), "http://0.0.0.0:1");

    let workers = |setup: Setup| setup.env("WEB_CONCURRENCY", "7").settings().workers;
    assert_eq!(workers(Setup::new("app:app")), 7);
    assert_eq!(workers(Setup::new("-w 2 app:app")), 2);

    let trusted = Setup::new("app:app").env("FORWARDED_ALLOW_IPS", "*").settings().forwarded_allow_ips;
    assert!(trusted.contains([203, 0, 113, 1].into()));
}

/// A list of a stronger source replaces the weaker one's; it does not grow it.
#[test]
fn lists_are_replaced_whole() {
    let file = [("bind", Value::List(vec![Value::text(":1"), Value::text(":2")]))];
    assert_eq!(Setup::new("app:app").file(&file).settings().bind.len(), 2);
    let replaced = Setup::new("-b :3 app:app").file(&file).settings().bind;
    assert_eq!(replaced, [Bind::Tcp { host: "0.0.0.0".to_owned(), port: 3 }]);
}

#[test]
fn the_application_is_positional_or_wsgi_app() {
    let file = [("wsgi_app", Value::text("conf:app"))];
    assert_eq!(Setup::new("").file(&file).settings().app, "conf:app");
    assert_eq!(Setup::new("cli:app").file(&file).settings().app, "cli:app");
    // Positional arguments of the variables are ignored, as in gunicorn.
    let error = Setup::new("").env("GUNICORN_CMD_ARGS", "env:app").error();
    assert_eq!(
        error.to_string(),
        "error: no application is given\n  from: the command line, and wsgi_app in the config file\n  \
         hint: name its module, as in `ringhorn mysite.wsgi` or `ringhorn app:app`"
    );
    let extra = settings("app:app other more");
    assert_eq!(extra.notices[0].text, "arguments after the application are ignored: other more");
}

#[test]
fn the_config_file_is_the_named_one_or_the_one_that_lies_there() {
    let ran = |setup: Setup| {
        let mut fake = Fake { names: &[], ran: Vec::new() };
        setup.load_with(Some(&mut fake)).unwrap();
        let dir = setup.dir.path().to_owned();
        fake.ran.pop().map(|location| match location {
            Location::Path(path) => path.strip_prefix(dir).unwrap_or(&path).display().to_string(),
            Location::Module(module) => format!("module {module}"),
        })
    };
    assert_eq!(ran(Setup::new("app:app")), None);
    assert_eq!(ran(Setup::new("app:app").file(&[])).as_deref(), Some("gunicorn.conf.py"));
    let both = Setup::new("app:app").file(&[]);
    std::fs::write(both.dir.path().join("ringhorn.conf.py"), "").unwrap();
    assert_eq!(ran(both).as_deref(), Some("ringhorn.conf.py"));
    assert_eq!(ran(Setup::new("-c x.py app:app").file(&[])).as_deref(), Some("x.py"));
    assert_eq!(ran(Setup::new("-c file:/etc/x.py app:app")).as_deref(), Some("/etc/x.py"));
    assert_eq!(ran(Setup::new("-c python:a.b app:app")).as_deref(), Some("module a.b"));
    let variables =
        Setup::new("app:app").env("GUNICORN_CMD_ARGS", "-c g.py").env("RINGHORN_CMD_ARGS", "-c r.py");
    assert_eq!(ran(variables).as_deref(), Some("r.py"));
}

/// A config file that is passed over in silence would start a server nobody asked for.
#[test]
fn a_config_file_that_cannot_be_read_is_never_passed_over_in_silence() {
    let named = Setup::new("-c conf.py app:app").error().to_string();
    assert!(named.contains("conf.py") && named.contains("from: --config on the command line"), "{named}");
    let mut lying = Setup::new("app:app").file(&[]);
    lying.names = None;
    let notices = lying.settings().notices;
    assert!(
        notices[0].level == Level::Warning && notices[0].text.contains("gunicorn.conf.py"),
        "{notices:?}"
    );
}

#[test]
fn names_in_a_config_file_that_are_nearly_settings_are_pointed_out() {
    let notices = Setup::new("app:app")
        .file(&[("multiprocessing", Value::Int(1)), ("worker", Value::Int(3)), ("cores", Value::Int(3))])
        .settings()
        .notices;
    assert_eq!(notices.len(), 1);
    assert!(notices[0].text.contains("did you mean workers?"), "{notices:?}");
}

#[test]
fn none_in_a_config_file_means_the_default() {
    let file = [("bind", Value::None), ("keyfile", Value::None), ("daemon", Value::Bool(false))];
    let settings = Setup::new("app:app").file(&file).settings();
    assert_eq!(settings.bind[0].to_string(), "http://127.0.0.1:8000");
    assert!(settings.notices.is_empty());
}

#[test]
fn workers_follow_the_cpus() {
    let mut setup = Setup::new("app:app");
    assert_eq!(
        (setup.settings().workers, setup.settings().workers_from.as_str()),
        (3, "affinity mask of 3 CPUs")
    );
    setup.cpus.quota = Some(1.5);
    assert_eq!(
        (setup.settings().workers, setup.settings().workers_from.as_str()),
        (2, "cgroup quota of 1.50 of 3 CPUs")
    );
    assert_eq!(settings("-w 9 app:app").workers_from, "--workers on the command line");
}

#[test]
fn zero_workers_are_an_error_of_three_lines() {
    assert_eq!(
        error("-w 0 app:app"),
        "error: invalid workers '0': it must be 1 or more\n  from: --workers on the command line\n  \
         hint: leave it out for one worker per usable CPU"
    );
    let variable = Setup::new("app:app").env("WEB_CONCURRENCY", "0").error().to_string();
    assert!(variable.contains("from: WEB_CONCURRENCY in the environment"), "{variable}");
    let file = Setup::new("app:app").file(&[("workers", Value::Int(0))]).error().to_string();
    assert!(file.contains("from: workers, in ") && file.contains("gunicorn.conf.py"), "{file}");
    assert!(error("-w 100000 app:app").contains("at most 4096"));
}

/// Without a number of its own, a server holds at most 64 requests (and database connections).
#[test]
fn threads_are_shared_out_among_the_workers() {
    for (line, expected) in [
        ("-w 1", 64),
        ("-w 2", 32),
        ("-w 3", 21),
        ("-w 16", 4),
        ("-w 64", 4),
        ("-w 2 --threads 1", 1),
        ("-w 2 --threads 100", 100),
        ("-w 2 -k sync", 1),
        ("-w 2 -k gthread", 32),
        // gunicorn makes gthread of this, too.
        ("-w 2 -k sync --threads 8", 8),
    ] {
        assert_eq!(settings(&format!("{line} app:app")).threads, expected, "{line}");
    }
    assert!(error("--threads 0 app:app").contains("invalid threads '0'"));
}

#[test]
fn worker_classes_that_cannot_run_say_what_to_use() {
    for (class, hint) in [
        ("gevent", "--threads"),
        ("eventlet", "--threads"),
        ("uvicorn.workers.UvicornWorker", "ASGI"),
        ("asgi", "ASGI"),
        ("my.Worker", "gthread or sync"),
    ] {
        let error = error(&format!("-k {class} app:app"));
        assert!(error.contains("worker class") && error.contains(hint), "{error}");
    }
    assert_eq!(settings("-k egg:gunicorn#sync app:app").worker_class, WorkerClass::Sync);
}

#[test]
fn refused_settings_stop_the_start_and_name_themselves() {
    for (line, name) in [
        ("--certfile c.pem", "certfile"),
        ("--protocol uwsgi", "protocol"),
        ("--dirty-app a:B", "dirty_apps"),
        ("--http-protocols h1,h2", "http_protocols"),
        ("--paste x.ini", "paste"),
        ("--spew", "spew"),
    ] {
        let error = error(&format!("app:app {line}"));
        assert!(error.starts_with(&format!("error: {name} = ")), "{error}");
        assert!(error.contains("on the command line\n  hint: "), "{error}");
    }
    // Also where it is what names the application.
    assert!(error("--paste x.ini").starts_with("error: paste = "));
}

#[test]
fn settings_without_effect_are_noticed() {
    let notices = settings("--worker-tmp-dir /dev/shm app:app").notices;
    let told = notices.iter().find(|notice| notice.text.starts_with("worker_tmp_dir has no effect")).unwrap();
    assert_eq!(told.level, Level::Debug);
    assert!(told.text.contains("--worker-tmp-dir on the command line"));
    assert!(notices.iter().all(|notice| !notice.text.contains('\n')));
    assert!(settings("--max-requests 0 app:app").notices.is_empty(), "a default is nothing to speak of");
}

#[test]
fn the_old_trap_of_proxy_protocol_is_explained() {
    let error = error("--proxy-protocol app:app");
    assert!(error.contains("it must be off, v1, v2 or auto"), "{error}");
    assert!(error.contains("hint: write --proxy-protocol=auto, or put the application first"), "{error}");
}

#[test]
fn errors_of_other_kinds_name_their_source_and_a_remedy() {
    for (line, wanted) in [
        ("-b 127.0.0.1:99999", "the port must be a number from 0 to 65535"),
        ("--chdir /no/such/dir", "cannot change to /no/such/dir: no such file or directory (ENOENT)"),
        ("--user no-such-user", "there is no user \"no-such-user\""),
        ("-e NOVALUE", "invalid environment variable \"NOVALUE\""),
        ("--access-logformat '%(h)d'", "h is text; write %(h)s"),
        ("--io fast", "it must be one of auto, uring, epoll"),
        ("-t -1", "it must be a number of seconds"),
        ("--forwarded-allow-ips 10.0.0.1/8", "has host bits"),
    ] {
        let error = error(&format!("{line} app:app"));
        assert!(error.contains(wanted), "{error}");
        assert_eq!(error.matches("\n  from: --").count(), 1, "{error}");
        assert_eq!(error.matches("\n  hint: ").count(), 1, "{error}");
    }
}

/// argparse, which gunicorn uses, ends with 2 when text stands in a number's place.
#[test]
fn text_in_the_place_of_a_number_is_a_wrong_command_line() {
    for line in ["-t soon app:app", "--workers many app:app"] {
        let error = Setup::new(line).error();
        assert_eq!(error.exit(), Exit::Usage, "{error}");
    }
}

#[test]
fn a_variable_that_cannot_be_understood_is_named() {
    let unknown = Setup::new("app:app").env("GUNICORN_CMD_ARGS", "--wrokers 3").error();
    assert_eq!(unknown.exit(), Exit::Usage);
    assert!(unknown.to_string().contains("from: GUNICORN_CMD_ARGS in the environment"), "{unknown}");
    let quote = Setup::new("app:app").env("RINGHORN_CMD_ARGS", "--bind 'x").error();
    assert_eq!(quote.exit(), Exit::Usage);
    assert!(quote.to_string().contains("RINGHORN_CMD_ARGS cannot be split"), "{quote}");
    assert_eq!(Setup::new("app:app").env("GUNICORN_CMD_ARGS", "--help").error().exit(), Exit::Usage);
}

#[test]
fn help_and_version_are_printed_whatever_else_is_wrong() {
    let setup = Setup::new("--version").env("WEB_CONCURRENCY", "0");
    let Ok(Loaded::Print { text, code }) = setup.result() else { panic!("not printed") };
    assert!(text.starts_with("ringhorn (version ") && code == 0);
}

#[test]
fn an_unknown_loglevel_is_info_with_a_warning() {
    let settings = settings("--log-level loud app:app");
    assert_eq!(settings.loglevel, Level::Info);
    assert!(settings.notices[0].text.contains("unknown loglevel \"loud\""));
}

#[test]
fn everything_has_its_type() {
    let settings = settings(
        "--timeout 0 --graceful-timeout 2.5 --access-logfile - --error-logfile e.log --log-level DEBUG \
         --pythonpath /a,/b -e A=1 -e B=x=y --preload --umask 007 -u 12 -g root --no-pin --io epoll -p x.pid \
         --limit-request-fields 0 --limit-request-field_size 0 --body-buffer 64k --header-map refuse \
         --forwarder-headers script_name,REMOTE_USER app:app",
    );
    assert_eq!((settings.timeout, settings.graceful_timeout), (Duration::ZERO, Duration::from_millis(2500)));
    assert_eq!(settings.accesslog, LogTarget::Standard);
    assert_eq!(settings.errorlog, LogTarget::File("e.log".into()));
    assert_eq!(settings.loglevel, Level::Debug);
    assert_eq!(settings.pythonpath, [PathBuf::from("/a"), PathBuf::from("/b")]);
    let pairs: Vec<_> =
        settings.raw_env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(pairs, [("A", "1"), ("B", "x=y")]);
    assert!(settings.preload_app && !settings.pin);
    assert_eq!((settings.umask, settings.user, settings.group), (0o007, Some(12), Some(0)));
    assert_eq!(settings.io, Io::Epoll);
    assert_eq!(settings.pidfile, Some(PathBuf::from("x.pid")));
    assert_eq!((settings.limit_request_fields, settings.limit_request_field_size), (32_768, 8190));
    assert_eq!(settings.body_buffer, 65_536);
    assert_eq!(settings.header_map, HeaderMap::Refuse);
    assert_eq!(settings.forwarder_headers, ["SCRIPT_NAME", "REMOTE_USER"]);
    assert_eq!(settings.secure_scheme_headers.len(), 3);
}

#[test]
fn defaults_are_usable_as_they_are() {
    let settings = Settings::default();
    assert!(settings.workers >= 1 && settings.threads >= 4 && settings.bind.len() == 1);
    assert_eq!(settings.accesslog, LogTarget::Off);
    assert_eq!(settings.errorlog, LogTarget::Standard);
    assert!(settings.pin && settings.notices.is_empty());
}

#[test]
fn the_listing_has_every_setting_sorted_with_its_source() {
    let listing = settings("-w 2 --umask 0600 app:app").listing();
    let names: Vec<_> = listing.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names.len(), SETTINGS.len());
    assert!(names.is_sorted());
    let line = |name: &str| {
        let line = listing.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("workers"), "workers = 2 # --workers on the command line");
    assert_eq!(line("umask"), "umask = 0o600 # --umask on the command line");
    assert_eq!(line("bind"), "bind = ['127.0.0.1:8000'] # default");
    assert_eq!(line("threads"), "threads = 32 # default: 64 / workers, at least 4");
}

/// gunicorn's `BaseApplication`, and `ringhorn.serve`.
#[test]
fn a_program_gives_settings_that_the_config_file_and_the_command_line_replace() {
    let setup = Setup::new("--timeout 3")
        .env("GUNICORN_CMD_ARGS", "--backlog 2")
        .env("WEB_CONCURRENCY", "7")
        .file(&[("threads", Value::Int(2))]);
    let env = |name: &str| setup.env.get(name).map(OsString::from);
    let cpus = || setup.cpus.clone();
    let values = [("workers", 1), ("threads", 1), ("backlog", 1), ("timeout", 1)];
    let values = values.map(|(name, value)| (name.to_owned(), Value::Int(value))).to_vec();
    let mut program = Program { values, app: Some("Mine".to_owned()), ..Program::default() };
    let load = |program: &Program| {
        let mut fake = Fake { names: setup.names.as_deref().unwrap(), ran: Vec::new() };
        let sources = Sources {
            args: if program.alone { &[] } else { &setup.args },
            env: &env,
            directory: setup.dir.path(),
            cpus: &cpus,
            program: Some(program),
        };
        match load(&sources, Some(&mut fake)) {
            Ok(Loaded::Run(settings)) => Ok(*settings),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    };
    let settings = load(&program).unwrap();
    let seconds = |settings: &Settings| settings.timeout.as_secs();
    assert_eq!((settings.workers, settings.threads, settings.backlog, seconds(&settings)), (1, 2, 2, 3));
    assert_eq!(settings.source("workers"), "workers, given by the program");
    assert_eq!(settings.app, "Mine");
    // Alone, it has nothing but the environment variables behind the defaults below it.
    program.alone = true;
    let settings = load(&program).unwrap();
    assert_eq!((settings.threads, settings.backlog, seconds(&settings)), (1, 1, 1));
    program.values = vec![("wrokers".to_owned(), Value::Int(1))];
    assert_eq!(
        load(&program).unwrap_err().to_string(),
        "error: there is no setting wrokers\n  hint: did you mean workers?"
    );
    program.values.clear();
    assert_eq!(load(&program).unwrap().workers, 7);
}

/// The application is shown with its source, as every setting is.
#[test]
fn the_application_is_among_the_settings() {
    let setup = Setup::new("app:app").file(&[("wsgi_app", Value::text("other:app"))]);
    for (settings, app, source) in [
        (setup.settings(), "app:app", "APP on the command line"),
        (Setup { args: Vec::new(), ..setup }.settings(), "other:app", "wsgi_app, in "),
    ] {
        assert_eq!((settings.app.as_str(), settings.value("wsgi_app").unwrap().0), (app, &Value::text(app)));
        assert!(settings.source("wsgi_app").starts_with(source), "{}", settings.source("wsgi_app"));
    }
}

#[test]
fn a_single_value_can_be_checked() {
    assert_eq!(check_value("body_buffer", Value::text("64k")), Ok(Value::Int(65_536)));
    assert_eq!(
        check_value("keepalive", Value::None),
        Ok(Values::defaults().entry("keepalive").value.clone())
    );
    assert!(check_value("workers", Value::Int(0)).is_err());
    assert!(check_value("no_such", Value::Int(0)).is_err());
}
