//! Which system calls a container may make: data only. In effect Docker's default profile (its form since version 25,
//! which no longer allows io_uring).
//!
//! Calls are named by the kernel's own constants, so that a call that an architecture lacks does not compile there.

/// A call by its number, with its name for tests and messages.
pub(super) type Call = (&'static str, libc::c_long);

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// A call's name without the prefix that the C library's constants have.
pub(super) fn plain(name: &'static str) -> &'static str {
    name.strip_prefix("SYS_").unwrap_or(name)
}

macro_rules! names {
    ($($name:ident)*) => { [$(stringify!($name)),*] };
}

/// Calls past this one are newer than this table: they answer "not implemented", so that programs fall back to older
/// ones as they would on an older kernel.
pub(super) const NEWEST_KNOWN: u32 = 466;

/// How `struct seccomp_data` names this architecture (AUDIT_ARCH).
pub(super) const ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

/// Allowed to every container, on every architecture.
pub(super) const ALWAYS: &[&[Call]] = &[FILES, DESCRIPTORS, MEMORY, PROCESSES, SIGNALS, TIME, SOCKETS, IPC, NEW];

const FILES: &[Call] = calls! {
    SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64
    SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_lseek SYS_fstat SYS_statx SYS_newfstatat SYS_statfs SYS_fstatfs
    SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_linkat SYS_symlinkat
    SYS_readlinkat SYS_renameat2 SYS_faccessat SYS_faccessat2 SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_umask
    SYS_truncate SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_sync SYS_syncfs SYS_fsync SYS_fdatasync
    SYS_sync_file_range SYS_utimensat SYS_flock SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_copy_file_range
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr
    SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr SYS_name_to_handle_at SYS_inotify_init1
    SYS_inotify_add_watch SYS_inotify_rm_watch SYS_fanotify_mark SYS_landlock_create_ruleset SYS_landlock_add_rule
    SYS_landlock_restrict_self
};

const DESCRIPTORS: &[Call] = calls! {
    SYS_dup SYS_dup3 SYS_pipe2 SYS_fcntl SYS_ioctl SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_eventfd2 SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_io_setup
    SYS_io_destroy SYS_io_submit SYS_io_cancel SYS_io_getevents SYS_memfd_create SYS_pidfd_open
    SYS_pidfd_send_signal
};

const MEMORY: &[Call] = calls! {
    SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mincore SYS_mlock SYS_mlock2 SYS_mlockall
    SYS_munlock SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_remap_file_pages
    SYS_memfd_secret SYS_process_mrelease
};

const PROCESSES: &[Call] = calls! {
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid SYS_getpgid
    SYS_setpgid SYS_getsid SYS_setsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
    SYS_getgroups SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setfsuid SYS_setfsgid
    SYS_setgroups SYS_capget SYS_capset SYS_prctl SYS_seccomp SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage
    SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_sched_yield SYS_sched_getaffinity
    SYS_sched_setaffinity SYS_sched_getattr SYS_sched_setattr SYS_sched_getparam SYS_sched_setparam
    SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_rr_get_interval SYS_getcpu SYS_futex SYS_futex_waitv SYS_set_robust_list SYS_get_robust_list
    SYS_set_tid_address SYS_rseq SYS_uname SYS_sysinfo SYS_getrandom SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace
};

const SIGNALS: &[Call] = calls! {
    SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigqueueinfo
    SYS_rt_tgsigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_sigaltstack SYS_restart_syscall
};

const TIME: &[Call] = calls! {
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_clock_adjtime SYS_adjtimex SYS_nanosleep SYS_gettimeofday
    SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
    SYS_times
};

const SOCKETS: &[Call] = calls! {
    SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_shutdown SYS_getsockname SYS_getpeername
    SYS_getsockopt SYS_setsockopt SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg
};

const IPC: &[Call] = calls! {
    SYS_mq_open SYS_mq_unlink SYS_mq_notify SYS_mq_getsetattr SYS_mq_timedsend SYS_mq_timedreceive SYS_msgget SYS_msgsnd
    SYS_msgrcv SYS_msgctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl
};

/// Since Linux 5.x calls have one number on all architectures; not every libc names them yet.
const NEW: &[Call] = &[
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
];

/// What only this architecture has.
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: &[Call] = calls! { SYS_renameat };

/// What x86_64 and 32-bit architectures have, which later ones left out.
macro_rules! older {
    ($($name:ident)*) => {
        #[cfg(target_arch = "x86_64")]
        pub(super) const NATIVE: &[Call] = calls! { $($name)* };
        /// Their names.
        pub(super) const OLDER: &[&str] = &names! { $($name)* };
    };
}

older! {
    SYS_arch_prctl SYS_modify_ldt SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_mkdir SYS_rmdir SYS_mknod SYS_link
    SYS_symlink SYS_readlink SYS_unlink SYS_rename SYS_renameat SYS_chmod SYS_chown SYS_lchown SYS_getdents SYS_utime
    SYS_utimes SYS_futimesat SYS_dup2 SYS_pipe SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_epoll_ctl_old
    SYS_epoll_wait_old SYS_eventfd SYS_signalfd SYS_inotify_init SYS_fork SYS_vfork SYS_getpgrp SYS_pause SYS_alarm
    SYS_time SYS_get_thread_area SYS_set_thread_area
}

/// Allowed or not by the arguments or the capabilities.
pub(super) const CHECKED: &[Call] = calls! { SYS_socket SYS_personality SYS_clone SYS_clone3 };

/// No libc names it, and it came before calls got one number everywhere.
pub(super) const IO_PGETEVENTS: Call = ("io_pgetevents", if cfg!(target_arch = "x86_64") { 333 } else { 292 });

/// Allowed to containers that have the capability.
pub(super) const WITH_CAPABILITY: &[(&str, &[Call])] = &[
    ("DAC_READ_SEARCH", calls! { SYS_open_by_handle_at }),
    ("SYS_ADMIN", SYS_ADMIN),
    ("SYS_BOOT", calls! { SYS_reboot }),
    ("SYS_CHROOT", calls! { SYS_chroot }),
    ("SYS_MODULE", calls! { SYS_init_module SYS_finit_module SYS_delete_module }),
    ("SYS_PACCT", calls! { SYS_acct }),
    ("SYS_PTRACE", calls! { SYS_kcmp SYS_pidfd_getfd SYS_process_madvise }),
    #[cfg(target_arch = "x86_64")]
    ("SYS_RAWIO", calls! { SYS_iopl SYS_ioperm }),
    ("SYS_TIME", calls! { SYS_settimeofday SYS_clock_settime }),
    ("SYS_TTY_CONFIG", calls! { SYS_vhangup }),
    ("SYS_NICE", SYS_NICE),
    ("SYSLOG", calls! { SYS_syslog }),
    ("BPF", calls! { SYS_bpf }),
    ("PERFMON", calls! { SYS_perf_event_open }),
];

const SYS_ADMIN: &[Call] = &[
    ("bpf", libc::SYS_bpf),
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("fspick", libc::SYS_fspick),
    ("mount", libc::SYS_mount),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("quotactl", libc::SYS_quotactl),
    ("quotactl_fd", 443),
    ("setdomainname", libc::SYS_setdomainname),
    ("sethostname", libc::SYS_sethostname),
    ("setns", libc::SYS_setns),
    ("syslog", libc::SYS_syslog),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("statmount", 457),
    ("listmount", 458),
];

const SYS_NICE: &[Call] = &[
    ("get_mempolicy", libc::SYS_get_mempolicy),
    ("mbind", libc::SYS_mbind),
    ("set_mempolicy", libc::SYS_set_mempolicy),
    ("set_mempolicy_home_node", 450),
];

/// Allowed to programs of 32 bits: other forms of what all have, and on ARM its private calls. What an architecture of
/// these has not is no matter.
pub(super) const ONLY_32: &[&str] = &names! {
    _llseek _newselect arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush chown32 clock_adjtime64
    clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64
    ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32 getresgid32 getresuid32 getuid32
    io_pgetevents_time64 ipc lchown32 lstat64 mmap2 mq_timedreceive_time64 mq_timedsend_time64 ppoll_time64
    pselect6_time64 recv recvmmsg_time64 rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 send
    sendfile64 set_tls setfsgid32 setfsuid32 setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32
    sigprocmask sigreturn socketcall stat64 statfs64 timer_gettime64 timer_settime64 timerfd_gettime64
    timerfd_settime64 truncate64 ugetrlimit utimensat_time64 waitpid
};

/// Allowed to programs of 32 bits in containers that have the capability.
pub(super) const ONLY_32_WITH_CAPABILITY: &[(&str, &[&str])] =
    &[("SYS_ADMIN", &["umount"]), ("SYS_TIME", &["clock_settime64", "stime"])];

/// `clone` without CAP_SYS_ADMIN: none of these flags (the ones that make namespaces).
pub(super) const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// The values of `personality` that change nothing, ask for 32-bit `uname`, or only ask.
pub(super) const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets to the machine that this one is virtual on are not allowed.
pub(super) const VSOCK: u32 = libc::AF_VSOCK as u32;
