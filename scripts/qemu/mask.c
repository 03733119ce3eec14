/* A getauxval that hides the processor's AES and SHA instructions: what a Pi 3 or 4 answers.
 *
 * Loaded before the C library by scripts/arm-cost; the crypto libraries ask it what there is. The
 * emulator itself cannot hide these instructions. */
#include <fcntl.h>
#include <sys/auxv.h>
#include <unistd.h>

/* <asm/hwcap.h> of arm64: AES, PMULL, SHA1, SHA2. */
#define CRYPTO (0xfUL << 3)

unsigned long getauxval(unsigned long type) {
    unsigned long pair[2], value = 0;
    int file = open("/proc/self/auxv", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    while (read(file, pair, sizeof pair) == sizeof pair && pair[0] != AT_NULL)
        if (pair[0] == type) {
            value = pair[1];
            break;
        }
    close(file);
    return type == AT_HWCAP ? value & ~CRYPTO : value;
}
