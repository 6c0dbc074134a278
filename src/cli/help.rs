//! What `--help` prints.

pub(crate) const ALL: &str = "\
refork: pre-fork servers that reload themselves

  refork run [OPTIONS] [--] COMMAND [ARG]...      run COMMAND as workers with inherited sockets; reload, respawn, drain
  refork watch [OPTIONS] [PATH]... [-- CMD...]    print what the file watcher sees, or run CMD after each change
  refork reload (--pid PID | --status-file PATH)  ask a running master to reload, and wait for the outcome

  -h, --help       after `run`, `watch` or `reload`: its options, signals and exit codes
  -V, --version
";

pub(crate) const RUN: &str = "\
refork run [OPTIONS] [--] COMMAND [ARG]...

Binds the sockets and runs COMMAND in each worker. COMMAND finds the sockets at descriptors 3, 4, ... (LISTEN_FDS,
LISTEN_PID, LISTEN_FDNAMES, as from systemd; blocking), its number in REFORK_WORKER and the version of the code in
REFORK_GENERATION. It should end on SIGTERM when it has answered what it accepted. One that dies is started again.

  -b, --bind [NAME=]ADDR     listen on ADDR; repeatable. HOST:PORT, [V6]:PORT, :PORT (IPv4 and IPv6), fd://N,
                             unix:PATH[,mode=0660]; port 0: the kernel chooses. NAME: for LISTEN_FDNAMES
  -w, --workers N|auto       how many workers; auto: one per CPU that this process may use [1]
  -r, --reload               a new generation of COMMAND when a source file, or COMMAND's own file, changes
      --reload-path PATH     what is watched, a file or a directory; repeatable, implies --reload [.]
      --reload-include GLOB  count these files instead of source files; repeatable
      --reload-exclude GLOB  never count these; repeatable
      --debounce MS          a change is complete after this time of quiet [50]
      --debounce-max MS      or at the latest after this time [1600]
      --poll[=MS]            look at the files instead of waiting for the kernel's word; how often [1000]
      --handover drain-first|overlap  end the old workers first, or only when all the new ones are ready [drain-first]
      --ready SECS|notify    a worker is ready when it has lived so long, or says READY=1 to NOTIFY_SOCKET [1]
      --check CMD            a shell command that must succeed before a reload goes on
      --boot-timeout SECS    how long a new generation may take to be ready before it is given up [30]
      --shutdown-timeout SECS  how long workers may go on answering after SIGTERM, then SIGKILL; like 10 or 0.5 [10]
      --stop-signal SIG      what tells COMMAND to drain and end [TERM]
      --status-file PATH     where to say what goes on, for `refork reload` and for scripts
  -v                         say more: each worker's life
  -q                         say less: warnings and errors
  -h, --help
  -V, --version

The signals of the master:
  TERM, INT   stop: drain the workers, then end; the second one, and QUIT: kill them now
  HUP         reload: a new generation of COMMAND
  USR2        the same, and refork executes itself anew: same pid, same sockets
  TTIN, TTOU  one worker more, one less
  USR1        is passed on to the workers (log files)

Exit codes: 0 stopped; 1 failed while running; 2 usage; 3 workers cannot boot; 4 cannot bind or adopt; 126 COMMAND
cannot be executed, 127 not found; 128+n ended by signal n. REFORK_LOG=error|warn|info|debug[,time] sets the log as
-v and -q do.
";

pub(crate) const WATCH: &str = "\
refork watch [OPTIONS] [PATH]... [-- CMD [ARG]...]

Watches files, and directories with all that is in them [.], but for hidden ones, node_modules, target, __pycache__ and
the like (see --all), and what editors leave for a moment. Prints `ready` on standard error once nothing can be
missed, then the changed paths of each batch on standard output, one line a batch, separated by spaces.

  -- CMD [ARG]...       run CMD after each batch instead of printing. Changes while it runs: once more afterwards.
                        It is not ended with refork
      --json            {\"ready\":true,\"t_ns\":N}, then {\"t_ns\":N,\"paths\":[...]} for each batch, all on
                        standard output; \"rescan\":true: events were lost and the files were read again;
                        \"error\":\"...\": what is not watched, or only polled. t_ns: CLOCK_MONOTONIC.
                        Bytes that are not UTF-8: \\udcXX
      --ext py,rs       count files with these extensions instead of the usual source files
      --all             count every file in every directory
      --no-follow       do not follow symbolic links
      --debounce MS     a batch is complete after this time of quiet [50]
      --debounce-max MS or at the latest after this time [1600]
      --poll[=MS]       look at the files instead of waiting for the kernel's word; how often [1000]
  -h, --help
  -V, --version

A reader that is slow is waited for: the next batch then holds what changed meanwhile. Ends on SIGINT and SIGTERM, and
with 0 when nobody reads its output any more. Exit codes: 1 cannot watch, or not any more; 2 usage; 128+n ended by
signal n.
";

pub(crate) const RELOAD: &str = "\
refork reload --pid PID
refork reload --status-file PATH [--wait] [--timeout SECS]

Asks a master to reload: SIGHUP. With a status file (see `refork run --status-file`), only if the process that wrote
it still lives.

      --pid PID           the master
      --status-file PATH  the file that the master writes
      --wait              wait until the reload has ended, and print how
      --timeout SECS      how long [60]
  -h, --help
  -V, --version

Exit codes: 0 asked, or with --wait: the new generation is ready; 1 the reload was dropped, rolled back or abandoned, or
the service stops, or nobody could be asked; 2 usage; 5 no outcome in time.
";
