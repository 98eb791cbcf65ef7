//! The arbiter: opens the listeners, forks a worker into each slot, reaps, replaces, times out,
//! and stops. It never reads a byte of a client, and it has one thread, so that it can fork.
//!
//! What it shares with the workers: the listeners ([`WorkerListener`], [`SiblingListener`]), the
//! page of worker records ([`SharedPage`]), the error log, and the eventfd that wakes it
//! ([`WorkerContext::set_ready`]). Workers hear from it through signals, and an order in their record.
//!
//! A **reload** (HUP) reads the settings again and lets a new generation of workers replace the old one,
//! slot by slot: forked beside the old worker, which is told to leave when the new one serves. What the
//! old generation needs (its settings, listeners of binds that are gone) is kept until the new one has
//! shown that it can boot, and until the last old worker has left. An **upgrade** (USR2) starts the same
//! command again with all listeners; both masters then serve until the operator stops one of them.
//!
//! `slots` decides, this module does what it says. The embedding process (CPython, or a native
//! service) takes part through [`Host`].

mod begin;
mod commands;
pub mod control;
mod launch;
mod native;
mod pidfile;
mod service;
mod slots;
mod sockets;

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use core_affinity::CoreId;
use tracing::{debug, error, info, warn};

use self::commands::Counts;
use self::control::Control;
use self::pidfile::Pidfile;
use self::service::Service;
use self::slots::{Action, Note, Rules, Seen, Slots};
use self::sockets::Listeners;
use crate::config::{Io, Settings, WorkerClass};
use crate::error::{Exit, StartError};
use crate::limits::{BACKLOG_MS, LOG_RETRY_MS, WORKERS_MAX};
use crate::observe::{self, CRITICAL, LogTarget};
use crate::sys::clock::monotonic_ms;
use crate::sys::errno::describe;
use crate::sys::in_hand::InHand;
use crate::sys::mailbox::Mailboxes;
use crate::sys::process::{self, Ending, Fork, Identity, Pid};
use crate::sys::rlimit;
use crate::sys::shared::{Order, SharedPage, WorkerRecord, WorkerState};
use crate::sys::signal::{self, Signal, SignalSet, Signals};
use crate::sys::title::Title;

pub use self::begin::begin;
pub use self::launch::Launch;
pub use self::native::NativeHost;
pub use self::sockets::{LocalAddr, SiblingListener, WorkerListener};

/// Exit code of a worker that panicked; gunicorn's for an exception that nobody caught.
const EXIT_PANIC: i32 = 255;
/// How the master calls itself in the log, as gunicorn does.
const NAME: &str = "Master";
/// Longest time that the new master of an upgrade waits for the old one before it leaves, in ms.
const LEAVE_TOGETHER_MS: u64 = 1_000;

/// What the process around the master provides. All calls come on its main thread.
pub trait Host {
    /// Loads the application before the fork, for `preload_app`.
    ///
    /// # Errors
    /// The application cannot be loaded; the server ends with the error's exit code.
    fn preload(&mut self, settings: &Settings) -> Result<(), StartError> {
        let _ = settings;
        Ok(())
    }

    /// How this process was started.
    fn launch(&self) -> Launch {
        Launch::of_process()
    }

    /// Reads the settings again (HUP). `old` are those in force.
    ///
    /// # Errors
    /// They are not valid; the server goes on with the old ones.
    fn reload(&mut self, old: &Settings) -> Result<Settings, StartError> {
        Ok(old.clone())
    }

    /// A reload came to nothing: `old` are in force again, and the `tried` ones are not.
    fn resume(&mut self, tried: &Settings, old: &Settings) {
        let _ = (tried, old);
    }

    /// Right before a fork (`PyOS_BeforeFork`).
    fn before_fork(&mut self) {}

    /// Right after a fork, in the master, also when it failed (`PyOS_AfterFork_Parent`).
    fn after_fork_parent(&mut self) {}

    /// Right after a fork, in the worker (`PyOS_AfterFork_Child`).
    fn after_fork_child(&mut self) {}

    /// The life of a worker. Returns its exit code: 0, or before it was ready 3 when it failed to
    /// boot and 4 when the application failed to load.
    fn serve(&mut self, worker: WorkerContext) -> i32;

    /// Calls `wait`, which sleeps, with the interpreter released.
    fn wait(&mut self, wait: &mut dyn FnMut()) {
        wait();
    }

    // The places where gunicorn calls hooks, under the hooks' names. All do nothing by default.

    /// In the master: the number of workers is `new`; it was `old`, or nothing was decided before.
    ///
    /// # Errors
    /// The hook failed: the server ends.
    fn nworkers_changed(&mut self, new: usize, old: Option<usize>) -> Result<(), StartError> {
        let _ = (new, old);
        Ok(())
    }

    /// In the master, before the listeners are opened.
    ///
    /// # Errors
    /// The hook failed: the server ends.
    fn on_starting(&mut self) -> Result<(), StartError> {
        Ok(())
    }

    /// In the master, with the listeners open and no worker forked.
    ///
    /// # Errors
    /// The hook failed: the server ends.
    fn when_ready(&mut self, addresses: &[String]) -> Result<(), StartError> {
        let _ = addresses;
        Ok(())
    }

    /// In the master, before it forks the worker of this age.
    ///
    /// # Errors
    /// The hook failed: the server ends.
    fn pre_fork(&mut self, age: u64) -> Result<(), StartError> {
        let _ = age;
        Ok(())
    }

    /// In the master: the worker of the last [`Host::pre_fork`] has this number.
    fn forked(&mut self, pid: Pid) {
        let _ = pid;
    }

    /// In the master: a worker has ended.
    ///
    /// # Errors
    /// The hook failed: the server ends.
    fn child_exit(&mut self, pid: Pid) -> Result<(), StartError> {
        let _ = pid;
        Ok(())
    }

    /// In the master: the settings are these from now on, and no worker has them yet.
    ///
    /// # Errors
    /// The hook failed: the server goes on with the old settings.
    fn on_reload(&mut self, settings: &Settings) -> Result<(), StartError> {
        let _ = settings;
        Ok(())
    }

    /// In the process that is about to become the next master, right before the exec.
    ///
    /// # Errors
    /// The hook failed: there is no next master.
    fn pre_exec(&mut self) -> Result<(), StartError> {
        Ok(())
    }

    /// In the master: the last thing before it ends.
    ///
    /// # Errors
    /// The hook failed: its exit code is the server's.
    fn on_exit(&mut self) -> Result<(), StartError> {
        Ok(())
    }

    /// In a worker, right after its fork, with the master's rights.
    ///
    /// # Errors
    /// The hook failed: the worker could not boot.
    fn post_fork(&mut self) -> Result<(), StartError> {
        Ok(())
    }

    /// In a worker that ends by itself, whether it ever served or not.
    fn worker_exit(&mut self) {}
}

/// What a worker starts with.
#[derive(Debug)]
pub struct WorkerContext {
    /// Its slot, from 0.
    pub slot: usize,
    /// How many workers this master had forked when it forked this one; from 1.
    pub age: u64,
    /// The settings.
    pub settings: Arc<Settings>,
    /// The listeners it accepts from: one per bind.
    pub listeners: Vec<WorkerListener>,
    /// The listener of the metrics address, if there is one.
    pub metrics_listeners: Vec<WorkerListener>,
    /// The other slots' listeners, to be accepted from when their owner cannot.
    pub siblings: Vec<SiblingListener>,
    /// The mailboxes of all slots.
    pub mailboxes: Mailboxes,
    /// The age of the first worker that has the listeners of this slot: those before it cannot accept for it.
    pub listeners_age: u64,
    /// The page of worker records.
    pub shared: Arc<SharedPage>,
    /// Which record is this worker's.
    pub record: usize,
    /// The worker's signals, recorded since the fork: TERM (graceful stop), INT and QUIT (quick
    /// stop), USR1 (reopen logs), and those that a worker ignores. A worker looks at them when it
    /// is ready; while it boots, the master kills it where haste is needed.
    pub signals: Signals,
    /// Wakes the master, so that it looks at the records ([`signal::notify`]).
    pub master_event: BorrowedFd<'static>,
}

impl WorkerContext {
    /// This worker's record in the shared page.
    #[must_use]
    pub fn record(&self) -> &WorkerRecord {
        &self.shared.records()[self.record]
    }

    /// Says that the worker serves from now on, and tells the master at once. From here on it must
    /// beat ([`WorkerRecord::beat`]) more often than `timeout`.
    pub fn set_ready(&self) {
        self.record().beat(monotonic_ms());
        self.record().set_state(WorkerState::Ready);
        signal::notify(self.master_event);
    }

    /// What tells the master that a file of the application was changed, at a time of [`monotonic_ms`]
    /// (`reload`). For any thread.
    pub fn change_teller(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let (shared, record, master_event) = (Arc::clone(&self.shared), self.record, self.master_event);
        move |at_ms| {
            if let Some(record) = shared.record(record) {
                // A clock that was set back must not make it a change of the future.
                record.set_changed(at_ms.min(monotonic_ms()));
                signal::notify(master_event);
            }
        }
    }
}

/// The CPUs to pin the workers to, by slot: all that this process may use, one for each worker. `None` when there are
/// more or fewer of them than workers, or `pin` is off.
///
/// With more CPUs than workers a pin would take from the application what its threads, libraries and child processes do
/// beside the interpreter. And who sets fewer workers often shares the machine: containers with a quota of CPU time see
/// all CPUs, and would all take the first ones.
#[must_use]
pub fn cpus(settings: &Settings) -> Option<Vec<usize>> {
    if !settings.pin {
        return None;
    }
    let cpus = core_affinity::get_core_ids()?;
    (cpus.len() == settings.workers).then(|| cpus.iter().map(|cpu| cpu.id).collect())
}

/// Runs the server until it is stopped. Returns the exit code of the process; in the workers it
/// does not return.
///
/// The caller's thread is the only one of the process, or the workers inherit whatever the others
/// had locked.
pub fn run(settings: Settings, host: &mut dyn Host) -> i32 {
    let to_file = matches!(settings.errorlog, LogTarget::File(_));
    let exit = match Master::start(settings, host) {
        Ok(mut master) => master.serve(),
        Err(error) => {
            error!("{}", error.in_log());
            if to_file {
                // Whoever started the server looks at the terminal first.
                eprintln!("{error}");
            }
            error.exit()
        }
    };
    observe::flush();
    exit.code()
}

struct Master<'h> {
    settings: Arc<Settings>,
    host: &'h mut dyn Host,
    launch: Launch,
    service: Service,
    pid: Pid,
    signals: Signals,
    shared: Arc<SharedPage>,
    /// Which record belongs to which worker.
    records: Vec<(Pid, usize)>,
    listeners: Listeners,
    mailboxes: Mailboxes,
    /// The listener of the metrics address.
    metrics: Option<Listeners>,
    /// The number of workers that the host knows of.
    workers: usize,
    /// A new generation is taking over.
    reloading: bool,
    /// The settings and listeners before the last reload, while they may still be needed.
    earlier: Option<(Arc<Settings>, Listeners)>,
    pidfile: Option<Pidfile>,
    cpus: Option<Vec<usize>>,
    /// Where process titles are written, if they can be.
    title: Option<Title>,
    slots: Slots,
    /// The master that started this one (USR2), until it is gone.
    earlier_master: Option<Pid>,
    /// The master that this one started.
    next_master: Option<Pid>,
    /// When the accept queues are measured next.
    backlog_ms: u64,
    /// Workers forked so far.
    age: u64,
    /// Where operators ask, if anywhere.
    control: Option<Control>,
    counts: Counts,
}

impl<'h> Master<'h> {
    /// gunicorn's order: preload, "Starting", pidfile, listeners.
    fn start(mut settings: Settings, host: &'h mut dyn Host) -> Result<Self, StartError> {
        check_workers(&settings)?;
        host.nworkers_changed(settings.workers, None)?;
        open_access_log(&settings)?;
        if settings.preload_app {
            host.preload(&settings)?;
            warn_about_threads();
        }
        info!("Starting ringhorn {}", env!("CARGO_PKG_VERSION"));
        match rlimit::raise_descriptors() {
            Ok(count) => debug!("descriptors: {count} for each process"),
            Err(error) => debug!("the limit of descriptors stays as it is: {}", describe(&error)),
        }
        // After the preload, so that an interrupt ends a long import as Python has it.
        let signals = Signals::install(master_signals()).map_err(|error| system("handle signals", &error))?;
        let shared = SharedPage::new().map_err(|error| system("map the shared page", &error))?;
        let pid = process::id();
        let launch = host.launch();
        let earlier_master = launch.earlier_master();
        let pidfile = match &settings.pidfile {
            Some(path) => Some(pidfile(path, pid, earlier_master.is_some(), &settings)?),
            None => None,
        };
        let opened = host.on_starting().and_then(|()| match launch.inherited() {
            Some(inherited) => Listeners::inherit(&inherited, &settings),
            None => Listeners::open(&settings),
        });
        let listeners = match opened {
            Ok(listeners) => listeners,
            Err(error) => {
                if let Some(pidfile) = pidfile {
                    pidfile.remove();
                }
                return Err(error);
            }
        };
        let metrics = match open_metrics(&settings, &launch) {
            Ok(metrics) => metrics,
            Err(error) => {
                let mut listeners = listeners;
                listeners.unlink();
                if let Some(pidfile) = pidfile {
                    pidfile.remove();
                }
                return Err(error);
            }
        };
        if earlier_master.is_some() && listeners.is_epolled() && settings.io != Io::Epoll {
            // io_uring wants them in the other mode.
            info!("The old master serves with epoll, and so does this one");
            settings.io = Io::Epoll;
        }
        if earlier_master.is_some() {
            // The end of the old master wakes this one, as the end of a child would.
            if let Err(error) = process::hear_of_parents_end(Signal::CHILD) {
                warn!("cannot hear of the old master's end: {}", describe(&error));
            }
        }
        let now_ms = monotonic_ms();
        let mut slots = Slots::new(rules(&settings), earlier_master.is_some(), now_ms);
        slots.keep_slots(listeners.slots(), now_ms);
        let mut master = Self {
            cpus: cpus(&settings),
            settings: Arc::new(settings),
            host,
            service: Service::new(&launch),
            launch,
            pid,
            signals,
            shared: Arc::new(shared),
            records: Vec::new(),
            listeners,
            mailboxes: Mailboxes::default(),
            metrics,
            workers: slots.target(),
            reloading: false,
            earlier: None,
            pidfile,
            title: Title::find().inspect_err(|error| debug!("no process titles: {}", describe(error))).ok(),
            slots,
            earlier_master,
            next_master: None,
            backlog_ms: 0,
            age: 0,
            control: None,
            counts: Counts::new(now_ms),
        };
        master.set_title("master");
        master.summarise();
        master.open_control();
        tell_workers(master.workers);
        let addresses: Vec<String> = master.listeners.addresses().map(ToString::to_string).collect();
        if let Err(error) = master.host.when_ready(&addresses) {
            master.listeners.unlink();
            master.unlink_metrics();
            master.close_control();
            master.remove_pidfile();
            return Err(error);
        }
        Ok(master)
    }

    /// A hook of the main loop failed: the server ends, as gunicorn does.
    fn abandon(&mut self, error: &StartError) {
        error!("Unhandled exception in main loop: {}", error.in_log());
        self.slots.abandon(error.exit(), monotonic_ms());
    }

    /// Removes the file of the metrics address, if it has one, and nobody else has it.
    fn unlink_metrics(&mut self) {
        if let Some(metrics) = &mut self.metrics
            && !self.slots.is_sharing()
        {
            metrics.unlink();
        }
    }

    fn remove_pidfile(&mut self) {
        if let Some(pidfile) = self.pidfile.take() {
            pidfile.remove();
        }
    }

    /// gunicorn's titles, with our name. `role` is master or worker.
    fn set_title(&self, role: &str) {
        let Some(title) = &self.title else { return };
        let Settings { proc_name, app, .. } = &*self.settings;
        let name = proc_name.as_deref().unwrap_or(app);
        // Told apart from the old master, as by its pidfile.
        let junior = if self.earlier_master.is_some() { ".2" } else { "" };
        if let Err(error) = title.set(&format!("ringhorn: {role} [{name}{junior}]")) {
            debug!("cannot set the process title: {}", describe(&error));
        }
    }

    /// One line per fact. The first two are gunicorn's, for those who look for them.
    fn summarise(&self) {
        let addresses: Vec<String> = self.listeners.addresses().map(ToString::to_string).collect();
        info!("Listening at: {} ({})", addresses.join(","), self.pid);
        let class = match self.settings.worker_class {
            WorkerClass::Sync => "sync",
            WorkerClass::Gthread => "gthread",
        };
        info!("Using worker: {class}");
        let Settings { workers, threads, app, .. } = &*self.settings;
        match &self.cpus {
            Some(cpus) => {
                let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
                info!("Workers: {workers}, each on its own CPU: {}", cpus.join(", "));
            }
            None if self.settings.pin => info!("Workers: {workers}, not pinned: not one for each CPU"),
            None => info!("Workers: {workers}, not pinned: {}", self.settings.source("pin")),
        }
        match threads {
            1 => info!("Threads: 1 per worker"),
            _ => info!("Threads: up to {threads} per worker, as requests block"),
        }
        info!("Application: {app}");
        for address in self.metrics.iter().flat_map(Listeners::addresses) {
            match address {
                LocalAddr::Tcp(_) => info!("Metrics at: {address}/metrics"),
                LocalAddr::Unix(_) => info!("Metrics at: {address}, path /metrics"),
            }
        }
    }

    fn serve(&mut self) -> Exit {
        loop {
            self.take_events();
            self.take_commands();
            self.slots.turn(monotonic_ms());
            // Before the forks that follow from it: their hooks see the new number, as in gunicorn.
            self.follow_target();
            if let Some(exit) = self.act() {
                return self.leave(exit);
            }
            if self.follow_target() {
                continue;
            }
            if self.slots.is_complete() {
                self.service.ready(self.slots.target());
                if std::mem::take(&mut self.reloading) {
                    info!("Reload complete: all workers are new");
                }
            }
            self.service.pet(monotonic_ms());
            self.wait();
        }
    }

    /// Tells of a changed number of workers. Returns whether its hook failed.
    fn follow_target(&mut self) -> bool {
        if self.slots.target() == self.workers {
            return false;
        }
        let old = std::mem::replace(&mut self.workers, self.slots.target());
        tell_workers(self.workers);
        let told = self.host.nworkers_changed(self.workers, Some(old));
        if let Err(error) = &told {
            self.abandon(error);
        }
        told.is_err()
    }

    fn take_events(&mut self) {
        let now_ms = monotonic_ms();
        // Signals first: a worker that an interrupt from the terminal ended at the same moment is
        // then part of the stop, and not replaced.
        for signal in self.signals.take().iter() {
            self.slots.signal(signal, now_ms);
        }
        loop {
            match process::reap() {
                Ok(Some((pid, ending))) => {
                    // After the death, before its meaning is decided: this worker, or another one,
                    // may have been ready since we last looked.
                    self.observe(now_ms);
                    if let Some(why) = self.slots.ended(pid, ending, now_ms) {
                        self.shared.server().metrics().departures[why as usize].add(1);
                    }
                    if self.next_master == Some(pid) {
                        self.next_master = None;
                        self.reopen_control();
                    }
                    if let Some(at) = self.records.iter().position(|(owner, _)| *owner == pid) {
                        let record = self.records.swap_remove(at).1;
                        if let Some(record) = self.shared.record(record) {
                            self.counts.requests += record.requests();
                            record.set_state(WorkerState::Empty);
                            record.set_pid(0);
                        }
                        self.call_siblings();
                    }
                    if let Err(error) = self.host.child_exit(pid) {
                        self.abandon(&error);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    error!("cannot reap: {}", describe(&error));
                    break;
                }
            }
        }
        self.observe(now_ms);
        if self.earlier_master.is_some() && process::parent_id() != self.earlier_master {
            self.promote(now_ms);
        }
    }

    /// A worker is gone: the others look after its queue until the next one serves.
    fn call_siblings(&self) {
        for record in
            self.shared.used().map(|(record, _)| record).filter(|record| record.state() == WorkerState::Ready)
        {
            self.mailboxes.poke(record.slot() as usize);
        }
    }

    fn observe(&mut self, now_ms: u64) {
        for (pid, record) in &self.records {
            if let Some(record) = self.shared.record(*record) {
                let seen = Seen {
                    ready: record.state() >= WorkerState::Ready,
                    spent: record.is_spent(),
                    stuck: record.is_stuck(),
                    heartbeat_ms: record.heartbeat_ms(),
                    changed_ms: record.changed_ms(),
                };
                self.slots.observed(*pid, seen, now_ms);
            }
        }
    }

    /// Which record belongs to a worker that was not reaped yet.
    fn record_index(&self, pid: Pid) -> Option<usize> {
        self.records.iter().find(|(owner, _)| *owner == pid).map(|(_, record)| *record)
    }

    fn record_of(&self, pid: Pid) -> Option<&WorkerRecord> {
        self.shared.record(self.record_index(pid)?)
    }

    /// What a worker has published of the requests that it has had in hand for a while.
    fn requests_of(&self, pid: Pid) -> Option<&InHand> {
        self.shared.in_hand(self.record_index(pid)?)
    }

    /// The log names the requests that a worker had in hand before it is killed, unless the worker did so itself.
    fn tell_requests_of(&self, pid: Pid) {
        let Some(page) = self.requests_of(pid) else { return };
        let published = page.published();
        if published.is_empty() || page.set_told() {
            return;
        }
        let now_ms = monotonic_ms();
        for request in published {
            let age = Duration::from_millis(now_ms.saturating_sub(request.begun_ms)).as_secs_f32();
            error!("Worker (pid:{pid}) had in hand: {}, {age:.1} s", request.text);
        }
    }

    /// Does what was decided, and what is decided meanwhile.
    fn act(&mut self) -> Option<Exit> {
        loop {
            let actions = self.slots.take_actions();
            if actions.is_empty() {
                return None;
            }
            for action in actions {
                match action {
                    Action::Fork { slot } => self.fork_into(slot),
                    Action::Kill { pid, signal } => {
                        self.counts.killed += u64::from(signal == Signal::KILL);
                        if matches!(signal, Signal::ABORT | Signal::KILL) {
                            self.tell_requests_of(pid);
                        }
                        kill(pid, signal);
                    }
                    Action::Leave { pid, order } => {
                        if let Some(record) = self.record_of(pid) {
                            record.set_order(order);
                        }
                        if order != Order::Renew {
                            kill(pid, Signal::TERM);
                        }
                    }
                    Action::Reload => self.reload(),
                    Action::DropGeneration => self.drop_generation(),
                    Action::ForgetEarlier => {
                        if let Some((_, listeners)) = self.earlier.take() {
                            listeners.close_but(&[&self.listeners]);
                        }
                    }
                    Action::Upgrade => self.upgrade(),
                    Action::Steer { slots } => self.listeners.steer(slots),
                    Action::CloseSlot { slot } => self.listeners.close_slot(slot),
                    Action::NotReady => self.shared.server().set_stopping(),
                    Action::StopListening => {
                        self.service.stopping(self.next_master);
                        // A unix socket's file is the other master's, while there is one. And a load balancer
                        // that asks here shall go on sending clients, for the other master to serve.
                        if !self.slots.is_sharing() {
                            self.shared.server().set_stopping();
                            self.listeners.unlink();
                        }
                    }
                    Action::Log(note) => {
                        if note == Note::Handling(Signal::USR1) {
                            create_logs(&self.settings);
                            observe::reopen();
                        }
                        log(&note);
                    }
                    Action::Finish(exit) => return Some(exit),
                }
            }
        }
    }

    fn wait(&mut self) {
        let now_ms = monotonic_ms();
        let control_ms = self.control.as_ref().and_then(|control| control.next_ms(now_ms));
        let backlog_ms = self.measure_backlog(now_ms);
        // Lines of the log that nobody has taken are offered again; there is no thread for it.
        let log_ms = observe::retry().then_some(now_ms + LOG_RETRY_MS);
        let until_ms = [self.slots.next_ms(now_ms), self.service.next_ms(), control_ms, log_ms, backlog_ms];
        let until_ms = until_ms.into_iter().flatten().min();
        let timeout = until_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms)));
        let (signals, control) = (&self.signals, &self.control);
        self.host.wait(&mut || {
            let others = control.as_ref().map(|control| control.polled(now_ms)).unwrap_or_default();
            if let Err(error) = signals.wait(timeout, others) {
                error!("cannot wait: {}", describe(&error));
                // Out of memory, most likely: not the time to spin.
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }

    /// Tells the length of the accept queues, once a second when somebody wants to know (`enable_backlog_metric`).
    /// Returns when it is time again.
    fn measure_backlog(&mut self, now_ms: u64) -> Option<u64> {
        if !self.settings.enable_backlog_metric {
            return None;
        }
        if self.backlog_ms <= now_ms {
            self.backlog_ms = now_ms + BACKLOG_MS;
            if let Some(count) = self.listeners.waiting_connections() {
                let text = format!("socket backlog: {count}");
                let statsd = observe::statsd::metrics();
                if let Some(statsd) = statsd {
                    statsd.backlog(count);
                }
                if statsd.is_some() || !observe::metric(&text, "gunicorn.backlog", count, "histogram") {
                    debug!("{text}");
                }
            }
        }
        Some(self.backlog_ms)
    }

    /// Returns how the process ends: a hook may have its own idea of that.
    fn leave(&mut self, exit: Exit) -> Exit {
        let reason = match exit {
            Exit::WorkerBoot => Some("Worker failed to boot."),
            Exit::AppLoad => Some("App failed to load."),
            Exit::Done | Exit::Start | Exit::Usage | Exit::Code(_) => None,
        };
        match reason {
            None if matches!(exit, Exit::Code(1..)) => error!("Shutting down: {NAME}"),
            None => info!("Shutting down: {NAME}"),
            Some(reason) => {
                error!("Shutting down: {NAME}");
                error!("Reason: {reason}");
            }
        }
        if exit == Exit::Done {
            self.await_earlier_master();
        }
        self.remove_pidfile();
        self.unlink_metrics();
        self.unlink_sockets();
        self.close_control();
        // As in gunicorn, a server that a hook ended does not ask another one.
        if matches!(exit, Exit::Code(_)) {
            return exit;
        }
        match self.host.on_exit() {
            Ok(()) => exit,
            Err(error) => {
                error!("{}", error.in_log());
                error.exit()
            }
        }
    }

    /// Removes the files of unix sockets that nobody else has: whoever leaves last does so. A stop has done it before,
    /// unless there was another master at that time.
    fn unlink_sockets(&mut self) {
        if let Some((_, earlier)) = self.earlier.take() {
            // No other master was ever given what only an earlier generation had.
            earlier.close_but(&[&self.listeners]);
        }
        if !self.slots.is_sharing() {
            self.listeners.unlink();
        }
    }

    /// When both masters of an upgrade are told to stop, they leave at about the same time, and each would leave the
    /// sockets' files to the other. So this one waits a moment for the end of the old one, which, if it comes later,
    /// knows that this one has ended.
    fn await_earlier_master(&mut self) {
        let give_up_ms = monotonic_ms().saturating_add(LEAVE_TOGETHER_MS);
        while self.earlier_master.is_some() && self.listeners.have_files() {
            let now_ms = monotonic_ms();
            if process::parent_id() != self.earlier_master {
                self.promote(now_ms);
            } else if now_ms >= give_up_ms {
                return;
            } else if let Err(error) =
                self.signals.wait(Some(Duration::from_millis(give_up_ms - now_ms)), Vec::new())
            {
                return debug!("cannot wait for the old master: {}", describe(&error));
            }
            if self.signals.take().iter().any(|signal| matches!(signal, Signal::INT | Signal::QUIT)) {
                return;
            }
        }
    }

    /// HUP. Whatever is wrong with the new settings, the server goes on with the old ones.
    fn reload(&mut self) {
        info!("Hang up: {NAME}");
        self.shared.server().metrics().reloads.add(1);
        self.service.reloading();
        create_logs(&self.settings);
        observe::reopen();
        if let Err(error) = self.try_reload() {
            error!("cannot reload, so the old settings stay: {}", error.in_log());
            self.counts.reloads_failed += 1;
        }
    }

    fn try_reload(&mut self) -> Result<(), StartError> {
        let mut settings = self.host.reload(&self.settings)?;
        keep_what_cannot_change(&self.settings, &mut settings);
        if self.slots.is_sharing() && settings.bind != self.settings.bind {
            warn!(
                "bind stays as it is while two masters share the listeners; reload again when one of them is gone"
            );
            settings.bind.clone_from(&self.settings.bind);
        }
        let settings = Arc::new(settings);
        let result = self.go_over_to(Arc::clone(&settings));
        if result.is_err() {
            self.host.resume(&settings, &self.settings);
        }
        result
    }

    fn go_over_to(&mut self, settings: Arc<Settings>) -> Result<(), StartError> {
        check_workers(&settings)?;
        self.host.on_reload(&settings)?;
        for notice in &settings.notices {
            notice.log();
        }
        open_access_log(&settings)?;
        let listeners = if settings.bind == self.settings.bind {
            self.listeners.same()
        } else {
            self.listeners.reopen(&settings)
        }?;
        if let Err(error) = self.move_pidfile(&settings) {
            listeners.close_but(&[&self.listeners]);
            return Err(error);
        }
        let rules = rules(&settings);
        let old_settings = self.adopt(settings);
        let old_listeners = std::mem::replace(&mut self.listeners, listeners);
        if old_settings.bind != self.settings.bind {
            self.listeners.begin(self.age + 1);
        }
        self.earlier = Some(match self.earlier.take() {
            // The last generation has not shown yet that it can boot: it is skipped.
            Some(earlier) if self.slots.may_drop() => {
                old_listeners.close_but(&[&self.listeners, &earlier.1]);
                earlier
            }
            Some((_, older)) => {
                older.close_but(&[&self.listeners, &old_listeners]);
                (old_settings, old_listeners)
            }
            None => (old_settings, old_listeners),
        });
        self.slots.reloaded(rules, monotonic_ms());
        self.reloading = true;
        self.counts.reloads += 1;
        self.set_title("master");
        self.summarise();
        Ok(())
    }

    /// Writes the pidfile where `settings` want it, if they are not those in force.
    fn move_pidfile(&mut self, settings: &Settings) -> Result<(), StartError> {
        if settings.pidfile == self.settings.pidfile {
            return Ok(());
        }
        let junior = self.earlier_master.is_some();
        let made = settings.pidfile.as_ref().map(|path| pidfile(path, self.pid, junior, settings));
        if let Some(old) = std::mem::replace(&mut self.pidfile, made.transpose()?) {
            old.remove();
        }
        Ok(())
    }

    /// Goes on with these settings; returns those before.
    fn adopt(&mut self, settings: Arc<Settings>) -> Arc<Settings> {
        observe::set_level(settings.loglevel);
        self.cpus = cpus(&settings);
        let before = std::mem::replace(&mut self.settings, settings);
        if self.settings.control != before.control {
            self.close_control();
            self.open_control();
        }
        if self.settings.backlog != before.backlog && !self.slots.is_sharing() {
            self.listeners.set_backlog(self.settings.backlog);
        }
        before
    }

    /// The new generation cannot boot.
    fn drop_generation(&mut self) {
        self.reloading = false;
        self.counts.reloads_failed += 1;
        if let Some((settings, listeners)) = self.earlier.take() {
            let dropped = std::mem::replace(&mut self.listeners, listeners);
            // Another master that has been given the dropped ones serves them: they are closed here alone.
            if !self.slots.is_sharing() {
                dropped.close_but(&[&self.listeners]);
            }
            if let Err(error) = self.move_pidfile(&settings) {
                warn!("the pidfile stays where the dropped reload wanted it: {}", error.what());
            }
            let dropped = self.adopt(settings);
            self.host.resume(&dropped, &self.settings);
            self.set_title("master");
        }
    }

    /// USR2: starts this command again with all listeners.
    fn upgrade(&mut self) {
        let blocked = match signal::block(master_signals()) {
            Ok(blocked) => blocked,
            Err(error) => return self.upgrade_failed(&error),
        };
        self.host.before_fork();
        match process::fork() {
            Ok(Fork::Child) => {
                // A panic must not unwind into the embedding process: see `fork_into`.
                let code = catch_unwind(AssertUnwindSafe(|| self.become_master(blocked)));
                process::exit_now(code.unwrap_or(EXIT_PANIC))
            }
            Ok(Fork::Parent(pid)) => {
                self.host.after_fork_parent();
                drop(blocked);
                info!("Started another master with pid: {pid}");
                self.next_master = Some(pid);
                self.slots.upgrading(pid);
            }
            Err(error) => {
                self.host.after_fork_parent();
                drop(blocked);
                self.upgrade_failed(&error);
            }
        }
    }

    fn upgrade_failed(&mut self, error: &io::Error) {
        error!("cannot start another master: {}", describe(error));
        self.slots.upgrade_failed();
    }

    /// In the child of an upgrade. Returns the exit code, if it does not become the next master.
    fn become_master(&mut self, blocked: signal::Blocked) -> i32 {
        // Our handlers would write to the eventfd that is still the old master's.
        let _ = Signals::install(SignalSet::EMPTY);
        drop(blocked);
        self.host.after_fork_child();
        if let Err(error) = self.host.pre_exec() {
            error!("no other master is started: {}", error.what());
            return error.exit().code();
        }
        let metrics = self.metrics.as_ref().map(Listeners::hand_over).transpose();
        let error = match self.listeners.hand_over().and_then(|listeners| Ok((listeners, metrics?))) {
            Ok((listeners, metrics)) => self.launch.become_again(&listeners, metrics.as_deref(), self.pid),
            Err(error) => error,
        };
        let program = self.launch.program.display();
        error!("cannot start another master: {program}: {}", describe(&error));
        Exit::Start.code()
    }

    /// The master that started this one is gone.
    fn promote(&mut self, now_ms: u64) {
        self.earlier_master = None;
        info!("{NAME} has been promoted.");
        self.set_title("master");
        if let Some(path) = &self.settings.pidfile
            && let Some(pidfile) = &mut self.pidfile
            && let Err(error) = pidfile.rename(path)
        {
            warn!("cannot rename the pidfile to {}: {}", path.display(), describe(&error));
        }
        self.service.promoted();
        self.slots.promoted(now_ms);
    }

    fn fork_into(&mut self, slot: usize) {
        if self.slots.is_ending() {
            // A hook failed after this fork was decided.
            return self.slots.fork_failed(slot, monotonic_ms());
        }
        if let Err(error) = self.listeners.grow(slot, self.settings.backlog, self.age + 1) {
            error!("cannot listen for one more worker: {}", describe(&error));
            return self.slots.fork_failed(slot, monotonic_ms());
        }
        // All that the settings ask for at once: a worker can write only to those that were there at its fork.
        if let Err(error) = self.mailboxes.grow(slot.max(self.settings.workers.saturating_sub(1))) {
            error!("cannot make the mailbox of one more worker: {}", describe(&error));
            return self.slots.fork_failed(slot, monotonic_ms());
        }
        if let Err(error) = self.host.pre_fork(self.age + 1) {
            self.slots.fork_failed(slot, monotonic_ms());
            return self.abandon(&error);
        }
        let number = u32::try_from(slot).unwrap_or(u32::MAX);
        let free = self.shared.free_record(number);
        let Some((index, record)) = free.and_then(|index| Some((index, self.shared.record(index)?))) else {
            error!("cannot fork a worker: too many are still leaving");
            return self.slots.fork_failed(slot, monotonic_ms());
        };
        record.reset(number);
        if let Some(in_hand) = self.shared.in_hand(index) {
            in_hand.reset();
        }
        if let Some(metrics) = self.shared.metrics(index) {
            metrics.begin();
        }
        self.age += 1;
        record.set_age(self.age);
        record.set_generation(u32::try_from(self.slots.generation()).unwrap_or(u32::MAX));
        // A signal between the fork and the worker's own handlers would be recorded in the wrong
        // process, or end the right one.
        let blocked = match signal::block(master_signals()) {
            Ok(blocked) => blocked,
            Err(error) => return self.fork_failed(slot, index, &error),
        };
        self.host.before_fork();
        let log = observe::hold();
        match process::fork() {
            Ok(Fork::Child) => {
                if let Some(log) = log {
                    log.begin_worker();
                }
                // A panic must not unwind into the embedding process: it would be a second master.
                let code = catch_unwind(AssertUnwindSafe(|| self.become_worker(slot, index, blocked)));
                observe::flush();
                std::process::exit(code.unwrap_or(EXIT_PANIC))
            }
            Ok(Fork::Parent(pid)) => {
                drop(log);
                self.host.after_fork_parent();
                drop(blocked);
                self.host.forked(pid);
                record.set_pid(pid.as_raw_nonzero().get().unsigned_abs());
                self.records.push((pid, index));
                self.shared.server().metrics().forks.add(1);
                self.slots.forked(slot, pid, monotonic_ms());
            }
            Err(error) => {
                drop(log);
                self.host.after_fork_parent();
                drop(blocked);
                self.fork_failed(slot, index, &error);
            }
        }
    }

    fn fork_failed(&mut self, slot: usize, record: usize, error: &io::Error) {
        if let Some(record) = self.shared.record(record) {
            record.set_state(WorkerState::Empty);
        }
        error!("cannot fork a worker: {}", describe(error));
        self.slots.fork_failed(slot, monotonic_ms());
    }

    /// In the child. Returns the exit code.
    fn become_worker(&mut self, slot: usize, record: usize, blocked: signal::Blocked) -> i32 {
        let master_event = self.signals.event();
        let installed = Signals::install(worker_signals());
        drop(blocked);
        self.host.after_fork_child();
        // The lock on the pidfile is the master's; with a copy in a worker it would outlive it.
        self.pidfile = None;
        // Nor are listeners of binds that are gone a new worker's business, or an operator's commands.
        self.earlier = None;
        self.control = None;
        let context = installed
            .map_err(|error| system("handle signals", &error))
            .and_then(|signals| self.prepare_worker(slot, record, signals, master_event));
        let context = match context {
            Ok(Some(context)) => context,
            // The master has died meanwhile.
            Ok(None) => return Exit::Done.code(),
            Err(error) => {
                error!("Worker (pid:{}) cannot start: {}", process::id(), error.in_log());
                self.host.worker_exit();
                // The next one would fail for the same reason, so it is one to end the start for.
                let exit = if error.exit() == Exit::Start { Exit::WorkerBoot } else { error.exit() };
                return exit.code();
            }
        };
        let shared = context.shared.clone();
        let code = self.host.serve(context);
        self.host.worker_exit();
        // A worker that never served keeps its state: that is how the master can tell.
        if let Some(record) = shared.record(record)
            && record.state() >= WorkerState::Ready
        {
            record.set_state(WorkerState::Exited);
        }
        code
    }

    fn prepare_worker(
        &mut self,
        slot: usize,
        record: usize,
        signals: Signals,
        master_event: BorrowedFd<'static>,
    ) -> Result<Option<WorkerContext>, StartError> {
        info!("Booting worker with pid: {}", process::id());
        self.host.post_fork()?;
        // Before the change of user, after which the kernel does not allow it.
        self.set_title("worker");
        if let Ok(name) = CString::new(format!("ringhorn-w{slot}")) {
            // For `top` and `ps -L` only.
            let _ = process::set_thread_name(&name);
        }
        let Settings { user, group, initgroups, .. } = *self.settings;
        process::assume(Identity { user, group, initgroups }).map_err(|error| {
            system("take the user and group of the settings", &error).from(self.settings.source("user"))
        })?;
        // After the change of user, which clears it.
        if !process::die_with(self.pid).map_err(|error| system("follow the master", &error))? {
            return Ok(None);
        }
        if let Some(&id) = self.cpus.as_ref().and_then(|cpus| cpus.get(slot))
            && !core_affinity::set_for_current(CoreId { id })
        {
            warn!("cannot pin worker {slot} to CPU {id}");
        }
        let listeners_age = self.listeners.age(slot);
        let (listeners, siblings) = std::mem::take(&mut self.listeners).into_worker(slot);
        Ok(Some(WorkerContext {
            slot,
            age: self.age,
            settings: self.settings.clone(),
            listeners,
            metrics_listeners: self
                .metrics
                .take()
                .map_or_else(Vec::new, |metrics| metrics.into_worker(slot).0),
            siblings,
            mailboxes: std::mem::take(&mut self.mailboxes),
            listeners_age,
            shared: self.shared.clone(),
            record,
            signals,
            master_event,
        }))
    }
}

fn master_signals() -> SignalSet {
    SignalSet::of(&[
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::TTIN,
        Signal::TTOU,
        Signal::WINCH,
        Signal::CHILD,
    ])
}

/// Those for the master are here so that they do no harm when they hit a whole process group
/// (gunicorn's workers die of a HUP). CHLD and ABRT belong to the application.
fn worker_signals() -> SignalSet {
    SignalSet::of(&[
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::TTIN,
        Signal::TTOU,
        Signal::WINCH,
    ])
}

fn kill(pid: Pid, signal: Signal) {
    // It was not reaped yet, so the number is still its own.
    if let Err(error) = process::kill(pid, signal) {
        // ESRCH: the worker has ended, and its end is about to be reaped.
        let name = signal::name(signal.as_raw());
        debug!("cannot send {name} to worker (pid:{pid}): {}", describe(&error));
    }
}

/// A program that starts the server by itself may give any number.
fn check_workers(settings: &Settings) -> Result<(), StartError> {
    if (1..=WORKERS_MAX).contains(&settings.workers) {
        return Ok(());
    }
    let what = format!("workers is {}, not 1 to {WORKERS_MAX}", settings.workers);
    Err(StartError::new(Exit::Start, what).from(settings.source("workers")))
}

fn rules(settings: &Settings) -> Rules {
    Rules {
        workers: settings.workers,
        timeout_ms: milliseconds(settings.timeout),
        graceful_ms: milliseconds(settings.graceful_timeout),
        drain_ms: milliseconds(settings.drain_delay),
        daemon: settings.daemon,
    }
}

/// Workers open the logs after they have become `user`, who may not be allowed to make a file there.
fn create_logs(settings: &Settings) {
    observe::create_files(&[&settings.accesslog, &settings.errorlog], settings.user, settings.group);
}

/// A worker that cannot open it serves nobody, and only its log would say why.
fn open_access_log(settings: &Settings) -> Result<(), StartError> {
    create_logs(settings);
    if settings.python_log {
        // Python's logger does, and has said so.
        return Ok(());
    }
    observe::check(&settings.accesslog).map_err(|error| {
        system(&format!("open the access log {}", settings.accesslog), &error)
            .from(settings.source("accesslog"))
    })
}

/// The pidfile, under another name while an old master has the usual one (gunicorn's ".2").
fn pidfile(path: &Path, pid: Pid, junior: bool, settings: &Settings) -> Result<Pidfile, StartError> {
    let mut name = path.as_os_str().to_owned();
    if junior {
        name.push(".2");
    }
    Pidfile::create(Path::new(&name), pid).map_err(|error| error.from(settings.source("pidfile")))
}

/// What a running server is built on stays as it was at the start, and the log says so.
fn keep_what_cannot_change(old: &Settings, new: &mut Settings) {
    let mut kept = Vec::new();
    let mut keep = |name: &'static str, changed: bool| {
        if changed {
            kept.push(name);
        }
    };
    // The two ways of waiting want listeners in different modes.
    keep("io", old.io != new.io);
    keep("preload_app", old.preload_app != new.preload_app);
    keep("user", old.user != new.user);
    keep("group", old.group != new.group);
    keep("initgroups", old.initgroups != new.initgroups);
    keep("daemon", old.daemon != new.daemon);
    keep("errorlog", old.errorlog != new.errorlog);
    // The logger of Python that writes it was made at the start.
    keep("accesslog", old.python_log && old.accesslog != new.accesslog);
    keep("statsd_host", old.statsd != new.statsd);
    keep("metrics_bind", old.metrics_bind != new.metrics_bind);
    keep("capture_output", old.capture_output != new.capture_output);
    for name in [
        "logger_class",
        "logconfig",
        "logconfig_dict",
        "logconfig_json",
        "syslog",
        "syslog_addr",
        "syslog_prefix",
        "syslog_facility",
        "disable_redirect_access_to_syslog",
    ] {
        // By its name: a config file that is run again makes another class.
        let shown = |settings: &Settings| settings.value(name).map(|(value, _)| value.to_string());
        keep(name, shown(old) != shown(new));
    }
    (new.io, new.preload_app, new.daemon) = (old.io, old.preload_app, old.daemon);
    (new.user, new.group, new.initgroups) = (old.user, old.group, old.initgroups);
    new.errorlog = old.errorlog.clone();
    if old.python_log {
        new.accesslog = old.accesslog.clone();
    }
    new.statsd = old.statsd.clone();
    new.metrics_bind = old.metrics_bind.clone();
    (new.capture_output, new.python_log) = (old.capture_output, old.python_log);
    if !kept.is_empty() {
        warn!("changed settings that need a restart, and stay as they were: {}", kept.join(", "));
    }
    if new.preload_app {
        warn!("the application was preloaded, so this reload does not load its code again; restart for that");
    }
}

fn tell_workers(count: usize) {
    if let Some(statsd) = observe::statsd::metrics() {
        statsd.workers(count);
    } else {
        let text = format!("{count} workers");
        observe::metric(&text, "gunicorn.workers", u64::try_from(count).unwrap_or(u64::MAX), "gauge");
    }
}

fn warn_about_threads() {
    if let Some(count) = process::thread_count()
        && count > 1
    {
        warn!("the preloaded application runs {} threads; workers will not have them", count - 1);
    }
}

/// The listener of the metrics address. One that an earlier master hands over is taken over, also when it is no
/// longer wanted: then it closes with it.
fn open_metrics(settings: &Settings, launch: &Launch) -> Result<Option<Listeners>, StartError> {
    let inherited = launch.inherited_metrics();
    match (&settings.metrics_bind, &inherited) {
        (Some(bind), _) => Listeners::for_metrics(bind, inherited.as_ref(), settings).map(Some),
        (None, Some(inherited)) => Listeners::inherit(inherited, settings).map(|_| None),
        (None, None) => Ok(None),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2)
}

fn system(what: &str, error: &io::Error) -> StartError {
    StartError::new(Exit::Start, format!("cannot {what}: {}", describe(error)))
}

/// gunicorn's lines, for those who look for them, and ours in its manner.
fn log(note: &Note) {
    match note {
        Note::Handling(signal) => {
            let name = signal::name(signal.as_raw());
            info!("Handling signal: {}", name.trim_start_matches("SIG").to_lowercase());
        }
        Note::Drains { delay_ms } => {
            let seconds = Duration::from_millis(*delay_ms).as_secs_f32();
            info!(
                "Not ready from now on; the stop begins in {seconds:.1} s (drain_delay), or with another TERM"
            );
        }
        Note::Ignored(signal, why) => warn!("{} has no effect: {why}", signal::name(signal.as_raw())),
        Note::GenerationDropped { pid } => {
            error!(
                "Worker (pid:{pid}) of the new generation failed to boot, so the reload is dropped; the old workers serve on"
            );
        }
        Note::UpgradeEnded { pid, ending } => {
            let how = match ending {
                Ending::Code(code) => format!("exited with code {code}"),
                Ending::Signal(number) => format!("was sent {}", signal::name(*number)),
            };
            warn!("the new master (pid:{pid}) {how}; this one goes on");
        }
        Note::TimedOut { pid } => error!(target: CRITICAL, "WORKER TIMEOUT (pid:{pid})"),
        Note::BackOff { slot, delay_ms } => {
            let seconds = Duration::from_millis(*delay_ms).as_secs_f32();
            warn!("Worker {slot} could not run; the next try is in {seconds:.1} s");
        }
        Note::GivenUp { pid } => {
            info!("Worker (pid:{pid}) is killed: it still loads, and is not needed any more");
        }
        Note::OutOfTime { workers } => {
            warn!("graceful_timeout is over; workers killed: {workers}");
        }
        // `leave` says it, when the others are gone.
        Note::CannotBoot(_) => {}
        Note::Ended { pid, ending: Ending::Code(0), .. } => debug!("Worker (pid:{pid}) has left"),
        Note::Ended { pid, ending: Ending::Code(code), .. } => {
            error!("Worker (pid:{pid}) exited with code {code}.");
        }
        Note::Ended { pid, ending: Ending::Signal(number), sent } => {
            let name = signal::name(*number);
            let ours = sent.is_some_and(|sent| sent.as_raw() == *number);
            match *number {
                // Said before: a timeout, or the end of a stop.
                libc::SIGKILL if ours => debug!("Worker (pid:{pid}) was killed"),
                libc::SIGKILL => {
                    error!("Worker (pid:{pid}) was sent SIGKILL! Perhaps out of memory?");
                }
                libc::SIGTERM => info!("Worker (pid:{pid}) was sent {name}!"),
                _ => warn!("Worker (pid:{pid}) was sent {name}!"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::field_reassign_with_default)]

    use super::*;

    #[test]
    fn workers_are_pinned_when_there_is_one_for_each_cpu() {
        let mut settings = Settings::default();
        settings.pin = true;
        let all = core_affinity::get_core_ids().unwrap().len();
        settings.workers = all;
        let pinned = cpus(&settings).unwrap();
        let different: std::collections::BTreeSet<usize> = pinned.iter().copied().collect();
        assert_eq!((pinned.len(), different.len()), (all, all));
        for workers in (1..all).chain([all + 1]) {
            settings.workers = workers;
            assert_eq!(cpus(&settings), None, "{workers} of {all}");
        }
        settings.workers = all;
        settings.pin = false;
        assert_eq!(cpus(&settings), None);
    }

    #[test]
    fn no_workers_and_far_too_many_are_refused() {
        for workers in [0, WORKERS_MAX + 1] {
            let mut settings = Settings::default();
            settings.workers = workers;
            let mut host = NativeHost::new(|_| 0);
            let error = Master::start(settings, &mut host).err().unwrap();
            assert!(error.what().contains(&workers.to_string()), "{error}");
        }
    }
}
