#include "cli/terminal.hpp"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>

#if defined(_WIN32)
#  define NOMINMAX
#  include <io.h>
#  include <windows.h>
#else
#  include <poll.h>
#  include <semaphore.h>
#  include <signal.h>
#  include <sys/ioctl.h>
#  include <unistd.h>
#endif
#if !defined(FLYWHEEL_SERIAL)
#  include <thread>
#endif

#include "cli/output.hpp"

namespace flywheel::cli {

bool is_terminal(std::FILE* stream) noexcept {
#if defined(_WIN32)
  return _isatty(_fileno(stream)) != 0;
#else
  return isatty(fileno(stream)) != 0;
#endif
}

bool takes_colour(std::FILE* stream) noexcept {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  if (no_colour != nullptr && *no_colour != '\0') return false;
  if (term != nullptr && std::strcmp(term, "dumb") == 0) return false;
  return is_terminal(stream);
}

unsigned terminal_columns() noexcept {
#if defined(_WIN32)
  CONSOLE_SCREEN_BUFFER_INFO facts;
  if (GetConsoleScreenBufferInfo(GetStdHandle(STD_ERROR_HANDLE), &facts))
    return static_cast<unsigned>(facts.srWindow.Right - facts.srWindow.Left + 1);
#else
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
  return 80;
}

// A signal handler may do almost nothing; it posts a semaphore, and a thread that waits for it stops the token.
// Without threads the handler stops the token itself: nobody registers callbacks with it, so no lock can be held.
namespace {

struct interrupt_state {
  std::mutex mutex;
  std::stop_source source;
};
interrupt_state& state() {
  static interrupt_state instance;
  return instance;
}

#if defined(_WIN32)
BOOL WINAPI on_console_event(DWORD event) {
  if (event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT) return FALSE;
  const std::lock_guard lock(state().mutex);
  return state().source.request_stop() ? TRUE : FALSE;  // the second time: end the program
}
#else
std::atomic<bool> pending = false;  // Ctrl-C was pressed and is not forgotten
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler may use it
struct sigaction previous_action;
#  if defined(FLYWHEEL_SERIAL)
void on_signal(int) {
  if (pending.exchange(true)) _exit(130);
  state().source.request_stop();
}
#  else
sem_t wake;
std::atomic<bool> leaving = false;
void on_signal(int) {
  if (pending.exchange(true)) _exit(130);
  sem_post(&wake);
}
std::thread& watcher() {
  static std::thread instance;
  return instance;
}
#  endif
#endif

/// Whether a system call goes on after Ctrl-C or returns EINTR.
void restart_after_interrupt([[maybe_unused]] bool restart) {
#if !defined(_WIN32)
  struct sigaction action {};
  sigaction(SIGINT, nullptr, &action);
  action.sa_flags = restart ? action.sa_flags | SA_RESTART : action.sa_flags & ~SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
#endif
}

}  // namespace

#if defined(_WIN32)
interrupt::interrupt() { SetConsoleCtrlHandler(on_console_event, TRUE); }
interrupt::~interrupt() { SetConsoleCtrlHandler(on_console_event, FALSE); }
#else
interrupt::interrupt() {
  state();  // made before a signal can need it
#  if !defined(FLYWHEEL_SERIAL)
  sem_init(&wake, 0, 0);
  try {
    watcher() = std::thread([] {
      while (true) {
        if (sem_wait(&wake) != 0) continue;
        if (leaving) return;
        const std::lock_guard lock(state().mutex);
        if (pending) state().source.request_stop();  // not when reset() was quicker
      }
    });
  } catch (const std::system_error& e) {
    fail(errc::io, "threads",
         std::string("cannot start one: ") + e.what() + "; raise the limits of this shell (ulimit)");
  }
#  endif
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // else text on its way to a slow terminal would be lost
  sigaction(SIGINT, &action, &previous_action);
}

interrupt::~interrupt() {
  sigaction(SIGINT, &previous_action, nullptr);
#  if !defined(FLYWHEEL_SERIAL)
  leaving = true;
  sem_post(&wake);
  watcher().join();
  leaving = false;
  sem_destroy(&wake);
#  endif
}
#endif

interruptible_reading::interruptible_reading() { restart_after_interrupt(false); }
interruptible_reading::~interruptible_reading() { restart_after_interrupt(true); }

std::stop_token interrupt::token() const {
  const std::lock_guard lock(state().mutex);
  return state().source.get_token();
}

// A signal that comes before a blocking read begins, or to another thread, does not end it: hence short waits.
bool interrupt::wait_for_line() const {
#if !defined(_WIN32)
  while (!requested()) {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    const int ready = ::poll(&input, 1, 100);
    if (ready > 0 || (ready < 0 && errno != EINTR)) return true;  // the read says what is wrong
  }
  return false;
#else
  return true;
#endif
}

void interrupt::reset() {
  const std::lock_guard lock(state().mutex);
  state().source = std::stop_source();
#if !defined(_WIN32)
  pending = false;
#endif
}

}  // namespace flywheel::cli
