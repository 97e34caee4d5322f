import java.io.File;
import java.io.FileInputStream;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.codehaus.mojo.animal_sniffer.ClassListBuilder;
import org.codehaus.mojo.animal_sniffer.SignatureChecker;
import org.codehaus.mojo.animal_sniffer.logging.Logger;

/**
 * Finds calls that Android 8.0 (API 26) lacks. Arguments: the signatures of API 26; a file that lists newer calls which
 * the app makes only after a check of the version; our jars, each of which is checked; `+` and jars that those need.
 */
public class Sniff {
    private static final Set<String> found = new TreeSet<>();
    private static final Logger log = new Logger() {
        public void info(String text) {}
        public void info(String text, Throwable e) {}
        public void debug(String text) {}
        public void debug(String text, Throwable e) {}
        public void warn(String text) {}
        public void warn(String text, Throwable e) {}
        public void error(String text) { found.add(text.replaceAll("^.*Undefined reference: ", "").trim()); }
        public void error(String text, Throwable e) { error(text); }
    };

    public static void main(String[] arguments) throws Exception {
        Set<String> known = new TreeSet<>();
        List<File> checked = new ArrayList<>();
        boolean ours = true;
        for (int i = 2; i < arguments.length; i++) {
            if (arguments[i].equals("+")) {
                ours = false;
                continue;
            }
            ClassListBuilder builder = new ClassListBuilder(log);
            builder.process(new File(arguments[i]));
            known.addAll(builder.getPackages());
            if (ours) checked.add(new File(arguments[i]));
        }
        for (File jar : checked) {
            try (FileInputStream signatures = new FileInputStream(arguments[0])) {
                SignatureChecker checker = new SignatureChecker(signatures, known, log);
                checker.setSourcePath(List.of());
                checker.process(jar);
            }
        }
        Set<String> allowed = new TreeSet<>(Files.readAllLines(new File(arguments[1]).toPath()));
        allowed.removeIf(line -> line.isBlank() || line.startsWith("#"));
        boolean bad = false;
        for (String call : found) {
            if (allowed.remove(call)) continue;
            System.out.println("not in API 26: " + call);
            bad = true;
        }
        for (String call : allowed) {
            System.out.println("listed in " + arguments[1] + ", and not used: " + call);
            bad = true;
        }
        System.out.println(bad ? "0 passed, 1 failed" : "1 passed, 0 failed");
        if (bad) System.exit(1);
    }
}
